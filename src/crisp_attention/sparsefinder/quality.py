"""How good a model is with a layout in its layers: task quality against sparsity."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from crisp_attention.methods.layouts import Full, Layout
from crisp_attention.methods.method import Method
from crisp_attention.models.apply import activate
from crisp_attention.models.borrowing import borrowed, inputs
from crisp_attention.models.host import AttentionLayer
from crisp_attention.models.parameters import fill_parameters
from crisp_attention.models.rollback import everything, remember
from crisp_attention.models.settings import settings_on
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.runs.task import Target
from crisp_attention.sparsefinder.scoring import Scored, Values
from crisp_attention.sparsefinder.settings import Setting
from crisp_attention.sparsefinder.trained import entmax_layers

FULL = "full"  # entmax of all pairs


@dataclass(frozen=True)
class Quality:
    """What a model is judged by: `measure(model)` gives a number, `title` says which, `percent` how to show it."""

    title: str
    measure: Callable[[nn.Module], float]
    higher_is_better: bool = True
    percent: bool = False

    @classmethod
    def of_target(cls, target: Target, batches: Iterable[Mapping[str, Any]]) -> "Quality":
        """The main metric of a task on labelled batches."""
        metric = target.metric(None)

        def measure(model: nn.Module) -> float:
            host, root = (sparse := SparseModel.of(model)).host, sparse.root
            logits, labels = [], []
            with borrowed(model, evaluate=True, unobserved=True):
                for batch in batches:
                    output: Any = model(
                        **inputs(host, root, {k: v for k, v in batch.items() if k != "labels"})
                    )
                    logits.append(output.logits.float().cpu().numpy())
                    labels.append(torch.as_tensor(batch["labels"]).numpy())
            return metric.score(target.predicted(np.concatenate(logits)), np.concatenate(labels))

        return cls(metric.title, measure, metric.higher_is_better, metric.percent)


def evaluate(
    model: nn.Module,
    quality: Quality,
    settings: Sequence[Setting],
    scored: Scored,
    *,
    seeds: int = 3,
    progress: bool = True,
) -> pd.DataFrame:
    """The quality of the model with entmax of all pairs, and with each main setting in its layers with entmax, by seed.

    The columns are variant, setting, seed, sparsity (the mean over layers and heads of `scored`), and quality. The
    model does not change.
    """
    layers = entmax_layers(model)
    sparsity = scored.table.groupby(["setting", "seed"])["sparsity"].mean()
    with having(model, layers, Full(), {}):
        full = quality.measure(model)
    rows = [{"variant": FULL, "setting": FULL, "seed": 0, "sparsity": 0.0, "quality": full}]
    points = [
        (each, seed, layout)
        for each in settings
        for seed in range(seeds)
        if each.main and (each.name, seed) in sparsity.index and (layout := each.at(seed)) is not None
    ]
    for each, seed, layout in tqdm(points, desc="evaluating", disable=not progress, file=sys.stderr):
        values = scored.values.get((each.name, seed), {})
        with having(model, layers, layout, values):
            found = quality.measure(model)
        point = {"variant": each.variant, "setting": each.name, "seed": seed}
        rows.append(point | {"sparsity": float(sparsity[each.name, seed]), "quality": found})
    return pd.DataFrame(rows)


@contextmanager
def having(
    model: nn.Module, layers: Mapping[AttentionLayer, Method], layout: Layout, values: Mapping[int, Values]
) -> Iterator[None]:
    """Inside the block the layers have a layout, with what was fitted for it, and the rules that they had."""
    sparse = SparseModel.of(model)
    own = {
        layer.index: method for layer in sparse.layers if (method := settings_on(layer).method) is not None
    }
    given = {layer.index: replace(method, layout=layout) for layer, method in layers.items()}
    put_back = remember(everything(sparse.host, sparse.root))
    try:
        activate(sparse.host, sparse.root, {**own, **given}, "always")
        for layer in layers:
            if layer.index in values:
                fill_parameters(layer.module, values[layer.index])
        yield
    finally:
        put_back()
