"""What a study says, from what lies in its folder."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from crisp_attention.studies.analysis.compare import compare_all
from crisp_attention.studies.analysis.notes import notes_on
from crisp_attention.studies.analysis.read import StudyRead, read_study
from crisp_attention.studies.analysis.results import Analysis, Comparison, Line
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import seeds_interval

FLIPS_SHOWN = 50


def analyse(study: StudyFolder) -> Analysis:
    """Compare every configuration with dense and, where there is one, with its random control.

    An unfinished study is analysed as far as it goes. Raises OptionError, naming the file or the runs, for
    files that are damaged and for runs that did not predict the same examples.
    """
    read = read_study(study)
    others = [each for each in study.configurations if not each.is_dense]
    to_dense = compare_all(others, study.dense, read)
    to_random: dict[str, Comparison] = {}
    for control in (each for each in others if each.is_control):
        controlled = [each for each in others if study.control(each) == control]
        to_random |= compare_all(controlled, control, read)
    tables = {each.id: read.table(each) for each in study.configurations}
    failed, missing = study.failed(), tuple(study.missing())
    return Analysis(
        study=study,
        metric=read.metric,
        split=read.split,
        labels=read.labels,
        lines=tuple(
            _line(each, read, tables, to_dense.get(each.id), to_random.get(each.id))
            for each in study.configurations
        ),
        failed=failed,
        missing=missing,
        flips=_flips(read),
        notes=notes_on(read, failed, missing),
    )


def _line(
    configuration: Configuration,
    read: StudyRead,
    tables: Mapping[str, pd.DataFrame],
    to_dense: Comparison | None,
    to_random: Comparison | None,
) -> Line:
    """The means of a configuration's runs, next to those of dense; `tables` by configuration id."""
    runs, dense_runs = tables[configuration.id], tables[read.study.dense.id]
    relative = runs.mean().astype(float) / dense_runs.mean().astype(float)  # objects where there are no runs
    found = read.runs[configuration.id].values()
    return Line(
        configuration=configuration,
        runs=runs,
        kernels=tuple(sorted({name for run in found for name in run.metrics.get("kernels", ())})),
        diverged=read.diverged[configuration.id],
        score=seeds_interval(runs["score"].tolist()),
        sd=float(runs["score"].std()),
        relative_time=float(relative["seconds_per_step"]),
        relative_memory=float(relative["peak_memory_bytes"]),
        to_dense=to_dense,
        to_random=to_random,
        histories=tuple(run.history for run in found),
        measurements=tuple(run.measurements for run in found if run.measurements is not None),
    )


def _flips(read: StudyRead) -> pd.DataFrame:
    """`Analysis.flips`; examples that nothing flips are left out."""
    table = pd.DataFrame({"index": read.labels.index, "label": read.labels.to_numpy()})
    counted = ["flips", "pairs", "gained", "lost"]
    table[counted] = 0
    dense = read.study.dense
    for configuration in read.study.configurations if read.predicts_classes else ():
        if configuration.is_dense or configuration.is_control:
            continue
        seeds = read.shared_seeds(configuration, dense)
        flipped = read.predictions(configuration, seeds) != read.predictions(dense, seeds)
        right, dense_right = read.correct(configuration, seeds), read.correct(dense, seeds)
        gained, lost = (right & ~dense_right).sum(axis=0), (~right & dense_right).sum(axis=0)
        table[counted] += np.stack(
            [flipped.sum(axis=0), np.full(len(table), len(seeds)), gained, lost], axis=1
        )
        table[configuration.id] = flipped.mean(axis=0) if seeds else np.nan
    table = table[table["flips"] > 0].sort_values("flips", ascending=False, kind="stable")
    return table.head(FLIPS_SHOWN).reset_index(drop=True)
