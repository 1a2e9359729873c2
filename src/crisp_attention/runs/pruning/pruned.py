"""What pruning did to a model: zeros, accuracy, and the time that it saves here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from crisp_attention.methods.checks import check_whole
from crisp_attention.pruning.steps import left_of
from crisp_attention.runs.pruning.layers import ROWS, by_kind, layer_table
from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.tables import as_html, as_text

if TYPE_CHECKING:
    import pandas as pd

SLOWER = "pruned, but dense takes less time than blocks of its size and zeros"
SCORES = {
    "class_accuracy": "accuracy on the classes",
    "among_classes": "among the classes alone",
    "accuracy": "accuracy on all",
}


@dataclass(frozen=True, repr=False)
class PrunedModel:
    """A model that was pruned, and how it did before and after on the evaluation data.

    Attributes
    ----------
    model
        The model itself, pruned in place.
    treatment
        How it was pruned.
    before, after
        Scores by name: ``class_accuracy`` (on examples of the classes, over all outputs), ``among_classes`` (over the
        outputs of the classes), ``accuracy`` (on all examples). Empty without evaluation data.
    history
        The same scores in the course of training, one row for each time that they were measured: step, epoch, sparsity
        (the share of zeros) and the scores. Empty without evaluation data.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> sizes = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=64, num_labels=4))
    >>> train = [{"input_ids": [3, each % 4 + 4], "labels": each % 4} for each in range(16)]
    >>> crisp.prune(model, train, target=0.75, steps=1, verbose=False)
    PrunedModel(BertForSequenceClassification, pruned 75 %, steps=1: 75.0% zeros)
    """

    model: nn.Module
    treatment: Pruning
    before: Mapping[str, float]
    after: Mapping[str, float]
    history: "pd.DataFrame"

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights of the layers that were pruned."""
        table = self.treatment.measure(self.model)
        return float((table["weights"] * table["sparsity"]).sum() / table["weights"].sum())

    def report(self, rows: int = ROWS) -> "Report":
        """Measure what pruning saves on this machine: every layer with `rows` inputs, dense and compressed.

        Raises ValueError for fewer than one.
        """
        check_whole("rows", rows, 1)
        return Report.of(self.model, self.treatment, self.before, self.after, rows)

    def __repr__(self) -> str:
        return f"PrunedModel({type(self.model).__name__}, {self.treatment.label}: {self.sparsity:.1%} zeros)"


@dataclass(frozen=True, repr=False)
class Report:
    """What pruning saves and costs.

    Attributes
    ----------
    layers
        One row per layer: name, kind, weights, sparsity, operations (the share that is left), block_size, dense_ms,
        compressed_ms.
    rows
        How many inputs were timed together.
    left
        The layers that were left as they are, each with the reason.
    before, after
        As in `PrunedModel`.
    """

    layers: "pd.DataFrame"
    rows: int
    left: Mapping[str, str]
    before: Mapping[str, float]
    after: Mapping[str, float]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        treatment: Pruning,
        before: Mapping[str, float],
        after: Mapping[str, float],
        rows: int = ROWS,
    ) -> "Report":
        """Measure on this machine, every layer with `rows` inputs, dense and compressed."""
        left = left_of(model, treatment.target, treatment.zeros, treatment.skip)
        return cls(layer_table(treatment.pruned(model), rows), rows, left, before, after)

    def __repr__(self) -> str:
        return as_text(*self._table()) + "".join(f"\n{line}" for line in self.lines())

    def _repr_html_(self) -> str:
        return as_html(*self._table())

    def lines(self) -> list[str]:
        """Accuracies before and after, and what was left as it is, in sentences."""
        found = [
            f"{title}: {self.before[name]:.1%} before, {self.after[name]:.1%} after"
            for name, title in SCORES.items()
            if name in self.before
        ]
        reasons: dict[str, list[str]] = {}
        slower = self.layers.loc[self.layers["block_size"] == 0, "name"]
        for name, reason in {**self.left, **dict.fromkeys(slower, SLOWER)}.items():
            reasons.setdefault(reason, []).append(name)
        found += [
            f"left as {'it is' if len(names) == 1 else 'they are'}, {reason}: {names[0]}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for reason, names in reasons.items()
        ]
        return found

    def _table(self) -> tuple[str, list[str], list[list[str]]]:
        rows = []
        for kind, each in by_kind(self.layers).iterrows():
            dense, fast = each["dense_ms"], each["compressed_ms"]
            rows.append(
                [
                    f"{each['weights'] / 1e6:.2f}",
                    f"{each['sparsity']:.1%}",
                    f"{each['operations']:.1%}",
                    f"{dense:.2f}" if dense == dense else "",
                    f"{fast:.2f}" if fast == fast else "",
                    f"{fast / dense:.2f}" if fast == fast else "",
                    str(kind),
                ]
            )
        headings = ["weights (M)", "zeros", "operations", "dense (ms)", "compressed (ms)", "ratio", "layers"]
        return f"What pruning saves on this machine, {self.rows} inputs at a time", headings, rows
