"""`crisp.profile(model, dataloader)`: one pass of the dense model over a sample, and where sparsity is safe by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_attention.extras import needs
from crisp_attention.insight.profile.curves import LayerSums
from crisp_attention.insight.profile.targets import METHODS, Targets, allocate, sparsest
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.checks import check_number
from crisp_attention.methods.heads import LayerMethod, PerHead, per_head
from crisp_attention.methods.method import AnyMethod, Method, as_method
from crisp_attention.tables import as_html, as_text

if TYPE_CHECKING:
    import pandas as pd
from collections.abc import Iterable, Sequence

from torch import nn

from crisp_attention.models.borrowing import borrowed, inputs
from crisp_attention.models.host import host_of
from crisp_attention.models.settings import Settings

SPARSITIES, MASSES = (0.5, 0.8, 0.9), (0.99, 0.95, 0.9)  # what the table has
SHOWN = 0.8  # the sparsity of what is printed
_adding = Lock()  # of the module, because what holds a lock cannot be sent to another process


@dataclass(repr=False)
class Profile:
    """Kept dense mass against sparsity for every layer and head, from `crisp.profile`.

    Prints as a short table.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> import torch
    >>> profile = crisp.profile(model, [{"input_ids": torch.arange(16)[None]}], block_size=4)
    >>> budgets = profile.recommend(sparsity=0.75)  # a sparsity for each head
    >>> round(profile.kept(crisp.TopK(sparsity=0.75))[0], 2)  # the achieved sparsity of one for all
    0.75
    """

    targets: Targets
    names: dict[int, str] = field(default_factory=dict)
    sums: dict[int, LayerSums] = field(default_factory=dict)

    def observe(self, layer: int, name: str, seen: Observation, *, cross: bool) -> None:
        """Take in one dense call of one layer."""
        now = LayerSums.of(seen, self.targets, cross=cross)
        with _adding:  # torch's DataParallel calls from a thread per device
            self.names[layer] = name
            if layer in self.sums:
                self.sums[layer].add(now)
            else:
                self.sums[layer] = now

    def __repr__(self) -> str:
        return as_text(*self._shown()) if self.sums else "Profile: nothing was profiled yet"

    def _repr_html_(self) -> str:
        return as_html(*self._shown()) if self.sums else escape(repr(self))

    def curves(self) -> "pd.DataFrame":
        """One row per layer, head, method and target sparsity: achieved `sparsity` and kept `mass`.

        Achieved is the share of valid pairs not kept, a little below the target, as rows keep whole
        keys; mass the share of the dense softmax weight on kept pairs.
        """
        pd = needs("pandas", extra="runs")
        frames = [
            pd.DataFrame(
                {
                    "layer": layer,
                    "name": self.names[layer],
                    "head": head,
                    "method": method,
                    "target": self.targets.sparsities,
                    "sparsity": curve.sparsity[head],
                    "mass": curve.share[head],
                }
            )
            for layer, total in sorted(self.sums.items())
            for method, curve in total.curves.items()
            for head in range(len(total.rows))
        ]
        return pd.concat(frames, ignore_index=True)

    def table(self) -> "pd.DataFrame":
        """One row per layer and head, as a DataFrame of pandas.

        `entropy` (nats) of the dense softmax and `distance` attended (tokens) are means over `rows`;
        `topk_mass_80` is the mass that top-k keeps at a target sparsity of 80 %, `topk_sparsity_95`
        the highest achieved sparsity that keeps 95 % of the mass; and so on, also for `block_topk`.
        In cross-attention there are neither distances nor blocks: NaN.
        """
        pd = needs("pandas", extra="runs")
        frames = []
        for layer, total in sorted(self.sums.items()):
            columns: dict[str, Any] = {
                "layer": layer,
                "name": self.names[layer],
                "head": range(len(total.rows)),
                "entropy": total.entropy / total.rows,
                "distance": total.distance / total.rows,
            }
            for method in METHODS:
                curve = total.curves.get(method)
                for each in SPARSITIES:
                    column = f"{method}_mass_{each * 100:.0f}"
                    columns[column] = curve.share[:, self.targets.index(each)] if curve else np.nan
                for each in MASSES:
                    column = f"{method}_sparsity_{each * 100:.0f}"
                    columns[column] = _at(curve.sparsity, sparsest(curve.share, each)) if curve else np.nan
            frames.append(pd.DataFrame(columns | {"rows": total.rows.astype(int)}))
        return pd.concat(frames, ignore_index=True)

    def recommend(
        self, *, sparsity: float | None = None, mass: float | None = None, method: str = "topk"
    ) -> Budgets:
        """A sparsity for every head, of `method` "topk" or "block_topk".

        For a `sparsity`: the budgets that keep most mass with no more pairs than this sparsity in all
        heads has; for a `mass`: those with the fewest pairs under which every head keeps this share.
        `expected` compares them with one sparsity everywhere, as `kept` does. Layers that the method
        does not fit stay dense. Raises ValueError unless exactly one of the two is given.
        """
        if sparsity is not None and mass is not None:
            raise ValueError(f"give either a sparsity or a mass, got {sparsity} and {mass}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        curves = {i: total.curves[method] for i, total in sorted(self.sums.items()) if method in total.curves}
        if not curves:
            raise ValueError(f"{method} fits none of the layers: they are all cross-attention")
        if broken := [self.names[i] for i, curve in curves.items() if not np.isfinite(curve.share).all()]:
            raise ValueError(f"the attention of {broken[0]} was not finite, or saw no valid pair")
        if sparsity is not None:
            even = self.targets.index(sparsity)
            pairs = np.concatenate([curve.pairs for curve in curves.values()])
            chosen = allocate(pairs, np.concatenate([curve.mass for curve in curves.values()]), even)
        elif mass is not None:
            check_number("mass", mass, "(0, 1]")
            chosen = sparsest(np.concatenate([curve.share for curve in curves.values()]), mass)
            even = int(chosen.min())
        else:
            raise ValueError("give either a sparsity, such as 0.8, or a mass, such as 0.95")
        grid = [self.targets.method(method, each) for each in self.targets.sparsities]
        ends = np.cumsum([len(curve.pairs) for curve in curves.values()])[:-1]
        methods = {
            self.names[layer]: per_head([grid[index] for index in own])
            for layer, own in zip(curves, np.split(chosen, ends), strict=True)
        }
        ours, uniform = self._kept(methods), self.kept(grid[even])
        expected = {
            "method": method,
            "target": {"sparsity": sparsity} if mass is None else {"mass": mass},
            "sparsity": ours[0],
            "mass": ours[1],
            "uniform": {"target": self.targets.sparsities[even], "sparsity": uniform[0], "mass": uniform[1]},
        }
        return Budgets(methods, expected)

    def kept(self, budgets: Budgets | AnyMethod) -> tuple[float, float]:
        """Achieved sparsity and kept mass of budgets, or of one method everywhere, on this sample.

        Both are over all layers and heads, as the dense model attends; a layer without a method, or
        that the one method does not fit, is dense. So a profile of other data shows whether budgets
        hold there. Raises ValueError for layers and methods that the profile does not know.
        """
        if isinstance(budgets, Budgets):
            return self._kept(budgets.methods)
        method = as_method(budgets)
        curve, _ = self.targets.find(method)
        return self._kept({self.names[i]: method for i, total in self.sums.items() if curve in total.curves})

    def plot(self, path: str | Path, budgets: Budgets | None = None) -> None:
        """Draw maps of layers x heads and the curves as one PNG, with budgets that `recommend` gave.

        By default those for top-k at a sparsity of 0.8.
        """
        from crisp_attention.insight.profile.figures import draw_profile  # matplotlib only for those who draw

        draw_profile(self, budgets or self.recommend(sparsity=0.8), Path(path))

    def _shown(self) -> tuple[str, list[str], list[list[str]]]:
        at, rows = self.targets.index(SHOWN), []
        for layer, total in sorted(self.sums.items()):
            kept = [
                total.curves[method].share[:, at].mean() if method in total.curves else None
                for method in METHODS
            ]
            cells = [
                f"{(total.entropy / total.rows).mean():.2f}",
                *("" if k is None else f"{k:.1%}" for k in kept),
            ]
            rows.append([str(layer), *cells, self.names[layer]])
        masses = [f"mass kept by {word}" for word in METHODS.values()]
        caption = (
            f"Profile of {len(rows)} attention layers, means over heads, at a target sparsity of {SHOWN:.0%}"
        )
        return caption, ["layer", "entropy (nats)", *masses, "name"], rows

    def _kept(self, methods: Mapping[str, LayerMethod]) -> tuple[float, float]:
        if unknown := sorted(set(methods) - set(self.names.values())):
            raise ValueError(
                f"the profile has no layer {unknown[0]!r}; its layers are {', '.join(self.names.values())}"
            )
        kept, all_of = np.zeros(2), np.zeros(2)  # pairs, mass
        for layer, total in self.sums.items():
            name, heads = self.names[layer], len(total.rows)
            method = methods.get(name, Method())
            each = method.methods if isinstance(method, PerHead) else (method,) * heads
            if len(each) != heads:
                raise ValueError(f"{name} has {heads} heads, the budgets are for {len(each)}")
            for head, own in enumerate(each):
                kind, index = self.targets.find(own)
                if kind not in total.curves:
                    raise ValueError(f"{own.spec} does not fit {name}, which is cross-attention")
                curve = total.curves[kind]
                kept += curve.pairs[head, index], curve.mass[head, index]
                all_of += curve.pairs[head, 0], curve.mass[head, 0]
        pairs, mass = kept / all_of
        return float(1 - pairs), float(mass)


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, index[:, None], axis=1)[:, 0]


def profile(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    *,
    block_size: int = 16,
    sparsities: Sequence[float] = (),
) -> Profile:
    """Find out where sparsity is safe: what every head keeps of its dense attention at every sparsity.

    Runs the model dense, a sparse one too, in evaluation mode; afterwards the model is restored.

    Parameters
    ----------
    model
        A model that Crisp can make sparse.
    dataloader
        Batches: mappings of the arguments of the model's forward.
    block_size
        Keys in a block, for `BlockTopK`.
    sparsities
        Target sparsities in addition to 0, 0.025 … 0.975.

    Returns
    -------
    Curves of kept mass for every layer and head, and the budgets that follow.

    Raises
    ------
    TypeError, ValueError
        For batches or models that it cannot use.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> import torch
    >>> profile = crisp.profile(model, [{"input_ids": torch.arange(16)[None]}], block_size=4)
    >>> profile.table()["rows"].tolist()  # one for each head
    [16, 16]
    """
    found = Profile(Targets.of(block_size, sparsities))

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        found.observe(settings.index, settings.name, seen, cross=settings.cross)

    host, root = host_of(model)
    with borrowed(model, observe=observe, methods=lambda _: None, evaluate=True):
        for batch in dataloader:
            model(**inputs(host, root, batch))
    if not found.sums:
        raise ValueError("nothing was profiled: the dataloader has no batch, or no attention ran")
    return found
