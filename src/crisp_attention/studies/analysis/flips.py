"""The examples on which sparse attention changes the answer."""

import numpy as np
import pandas as pd

from crisp_attention.studies.analysis.answers import Answers
from crisp_attention.studies.study import Study

SHOWN = 50


def flips_table(study: Study, answers: Answers) -> pd.DataFrame:
    """`Analysis.flips`; examples that nothing flips are left out."""
    table = pd.DataFrame({"index": answers.index, "label": answers.labels})
    counted = ["flips", "pairs", "gained", "lost"]
    table[counted] = 0
    for configuration in study.configurations:
        if configuration.is_dense or configuration.is_random:
            continue
        seeds = answers.shared_seeds(configuration, study.dense)
        flipped = answers.predictions(configuration, seeds) != answers.predictions(study.dense, seeds)
        right, dense_right = answers.correct(configuration, seeds), answers.correct(study.dense, seeds)
        gained, lost = (right & ~dense_right).sum(axis=0), (~right & dense_right).sum(axis=0)
        table[counted] += np.stack(
            [flipped.sum(axis=0), np.full(len(table), len(seeds)), gained, lost], axis=1
        )
        table[configuration.id] = flipped.mean(axis=0) if seeds else np.nan
    table = table[table["flips"] > 0].sort_values("flips", ascending=False, kind="stable")
    return table.head(SHOWN).reset_index(drop=True)
