"""`crisp.measuring(model)`: the achieved sparsity, kept mass and entropy of a model's attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from html import escape
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from crisp_attention.extras import needs
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.settings import Settings
from crisp_attention.tables import as_html, as_text

if TYPE_CHECKING:
    import pandas as pd

_adding = Lock()  # of the module, because what holds a lock cannot be sent to another process


@dataclass
class LayerTotals:
    """Sums per head over all observed rows of one layer, streamed: nothing L x L is kept."""

    valid_pairs: Tensor
    kept_pairs: Tensor
    kept_mass: Tensor
    entropy: Tensor
    rows: Tensor
    branch_pairs: Tensor

    @classmethod
    def of(cls, seen: Observation) -> "LayerTotals":
        """Totals of one call, each (H,). Rows of padded queries, and empty rows, do not count."""
        real = (seen.queries & seen.valid.any(dim=-1)).unsqueeze(-1)
        valid, keep = seen.valid & real, seen.keep & real
        lowest = torch.finfo(seen.scores.dtype).min
        dense = seen.scores.masked_fill(~valid, lowest).softmax(dim=-1).masked_fill(~valid, 0.0)
        log_used = seen.scores.masked_fill(~keep, lowest).log_softmax(dim=-1)
        entropy = -(log_used.exp() * log_used).masked_fill(~keep, 0.0)

        def per_head(pairs: Tensor) -> Tensor:
            total = torch.float32 if pairs.device.type == "mps" else torch.float64
            return pairs.sum(dim=-1, dtype=total).sum(dim=(0, 2)).cpu()

        return cls(
            valid_pairs=per_head(valid),
            kept_pairs=per_head(keep),
            kept_mass=per_head(dense.masked_fill(~keep, 0.0)),
            entropy=per_head(entropy),
            rows=per_head(real),
            branch_pairs=per_head(torch.zeros_like(valid) if seen.branch is None else seen.branch & valid),
        )

    def add(self, other: "LayerTotals") -> None:
        """Add the totals of another call on the same layer."""
        self.valid_pairs += other.valid_pairs
        self.kept_pairs += other.kept_pairs
        self.kept_mass += other.kept_mass
        self.entropy += other.entropy
        self.rows += other.rows
        self.branch_pairs += other.branch_pairs


@dataclass(repr=False)
class Measurement:
    """Achieved sparsity, kept mass and entropy per layer and head, from `crisp.measuring`. Prints as a short table.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> import torch
    >>> with crisp.measuring(model) as measured:
    ...     _ = model(torch.arange(16)[None])
    >>> measured.table()[["layer", "head", "sparsity", "rows"]]
       layer  head  sparsity  rows
    0      0     0       0.0    16
    1      0     1       0.0    16
    """

    names: dict[int, tuple[str, str | list[str]]] = field(default_factory=dict)
    totals: dict[int, LayerTotals] = field(default_factory=dict)

    def observe(self, layer: int, name: str, method: str | list[str], seen: Observation) -> None:
        """Take in one call of one layer; `method` is that of the layer, or one for each head."""
        now = LayerTotals.of(seen)
        with _adding:  # torch's DataParallel calls from a thread per device
            self._add(layer, (name, method), now)

    def add(self, other: "Measurement") -> None:
        """Add what was measured elsewhere of the same model, in another process for example."""
        for layer, totals in other.totals.items():
            self._add(layer, other.names[layer], deepcopy(totals))

    def _add(self, layer: int, names: tuple[str, str | list[str]], now: LayerTotals) -> None:
        self.names[layer] = names
        if layer in self.totals:
            self.totals[layer].add(now)
        else:
            self.totals[layer] = now

    def __repr__(self) -> str:
        return as_text(*self._shown()) if self.totals else "Measurement: nothing was measured yet"

    def _repr_html_(self) -> str:
        return as_html(*self._shown()) if self.totals else escape(repr(self))

    def table(self) -> "pd.DataFrame":
        """One row per layer and head, as a DataFrame of pandas.

        `sparsity` is the achieved one: the share of valid pairs not attended; `kept_mass` the share
        of the dense softmax weight on kept pairs, mean over rows; `entropy` that of the softmax over
        kept pairs, in nats, mean over rows (0: one key has all the weight). Attention sinks are not
        part of either. `branch` is the share of valid pairs that the method's branch attends to, such as the
        marginal ones of `SparseLinear`; what is neither kept nor among these gets nothing. Raises ValueError
        when no call was observed, and ModuleNotFoundError where pandas is not installed.
        """
        self._check()
        pd = needs("pandas", extra="runs")
        frames = []
        for layer, total in sorted(self.totals.items()):
            name, method = self.names[layer]
            frame = pd.DataFrame(
                {
                    "layer": layer,
                    "name": name,
                    "method": method,
                    "head": range(len(total.rows)),
                    "sparsity": (1 - total.kept_pairs / total.valid_pairs).tolist(),
                    "kept_mass": (total.kept_mass / total.rows).tolist(),
                    "entropy": (total.entropy / total.rows).tolist(),
                    "keys_per_row": (total.kept_pairs / total.rows).tolist(),
                    "branch": (total.branch_pairs / total.valid_pairs).tolist(),
                    "valid_pairs": total.valid_pairs.long().tolist(),
                    "rows": total.rows.long().tolist(),
                }
            )
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> dict[str, float]:
        """Over all layers and heads: achieved sparsity (by pairs), kept mass and entropy (by rows).

        Kept mass and entropy are NaN where a score is not finite. Raises as `table` does.
        """
        self._check()

        def total(name: str) -> float:
            return sum(getattr(each, name).sum().item() for each in self.totals.values())

        rows = total("rows")
        return {
            "sparsity": 1 - _share(total("kept_pairs"), total("valid_pairs")),
            "kept_mass": _share(total("kept_mass"), rows),
            "entropy": _share(total("entropy"), rows),
        }

    def _shown(self) -> tuple[str, list[str], list[list[str]]]:
        whole, rows = self.summary(), []
        for layer, total in sorted(self.totals.items()):
            name, method = self.names[layer]
            words = method if isinstance(method, str) else " | ".join(dict.fromkeys(method))
            one = Measurement({layer: self.names[layer]}, {layer: total}).summary()
            rows.append([str(layer), words, *_words(one), name])
        sparsity, mass, entropy = _words(whole)
        caption = (
            f"Measurement of {len(rows)} attention layers, means over heads: "
            f"sparsity {sparsity}, kept mass {mass}, entropy {entropy} nats"
        )
        return caption, ["layer", "method", "sparsity", "kept mass", "entropy (nats)", "name"], rows

    def _check(self) -> None:
        if not self.totals:
            raise ValueError(
                "nothing was measured: no attention call ran inside `with crisp.measuring(model)`"
            )


@contextmanager
def measuring(model: nn.Module) -> Iterator[Measurement]:
    """Measure every attention call of a model inside the block, per layer and head.

    Costs nothing when not active.

    Parameters
    ----------
    model
        A model, sparse or not: one that is not sparse is measured dense, and should run in no other thread while
        its block begins or ends. Layers that are dense, or not in their phase, appear as `dense`.

    Yields
    ------
    A `Measurement`, which can be read during and after the block. Calls from other threads count too.

    Raises
    ------
    ValueError
        For a model that Crisp cannot observe.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> import torch
    >>> with crisp.measuring(crisp.sparsify(model, crisp.TopK(sparsity=0.75))) as measured:
    ...     _ = model(torch.arange(16)[None])
    >>> measured.summary()["sparsity"]
    0.75
    """
    measurement = Measurement()

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        names = [m.name for m in method.methods] if isinstance(method, PerHead) else method.name
        measurement.observe(settings.index, settings.name, names, seen)

    with borrowed(model, observe=observe):
        yield measurement


def _words(summary: dict[str, float]) -> list[str]:
    return [f"{summary['sparsity']:.1%}", f"{summary['kept_mass']:.1%}", f"{summary['entropy']:.2f}"]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
