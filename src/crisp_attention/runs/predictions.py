"""Predictions of every example: the ground that all statistics stand on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import EvalPrediction, Trainer

NO_CLASS = -1


def accuracy_of(prediction: EvalPrediction) -> dict[str, float]:
    """The share of examples whose largest logit is that of their label; logits that are not finite are wrong."""
    return {"accuracy": float(np.mean(_classes(prediction.predictions) == prediction.label_ids))}


def evaluate(trainer: Trainer, split: Dataset, path: Path | None = None) -> dict[str, Any]:
    """Accuracy, mean loss and number of examples of a split; writes one row per example to `path`.

    The columns are index (row number in the split, in order), label, prediction (-1 where a logit is not
    finite), and the list of logits.
    """
    output = trainer.predict(split, metric_key_prefix="split")
    if path is not None:
        logits = np.asarray(output.predictions, dtype=np.float32)
        table = pd.DataFrame(
            {
                "index": np.asarray(split["index"]),
                "label": output.label_ids,
                "prediction": _classes(logits),
                "logits": list(logits),
            }
        )
        table.sort_values("index").to_parquet(path, compression="zstd", index=False)
    metrics = output.metrics or {}
    return {"accuracy": metrics["split_accuracy"], "loss": metrics["split_loss"], "examples": len(split)}


def _classes(logits: Any) -> np.ndarray:
    # argmax would call a row of NaN the first class
    return np.where(np.isfinite(logits).all(axis=-1), np.argmax(logits, axis=-1), NO_CLASS)
