"""The figure of a profile."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from crisp_attention.drawing.maps import AMOUNT, draw_map, draw_scale, frame
from crisp_attention.drawing.palette import BLUE, QUIET, VERMILLION
from crisp_attention.drawing.style import DPI, finish
from crisp_attention.insight.profile.profile import Profile
from crisp_attention.insight.profile.targets import METHODS
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.heads import PerHead


def draw_profile(profile: Profile, budgets: Budgets, path: Path) -> None:
    """Six maps of layers x heads, and for each method the curves of all heads with the budgets marked."""
    table, curves = profile.table(), profile.curves()
    layers, heads = table["layer"].nunique(), len(table)
    grey = " (grey: does not apply)" if table.isna().any(axis=None) else ""
    figure = Figure(figsize=(12, 11.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    figure.suptitle(
        f"Dense attention of {heads} heads in {layers} layers: where sparsity is safe{grey}", fontsize=14
    )
    above, below = figure.subfigures(2, 1, height_ratios=[2, 1.1])  # type: ignore[misc]
    panels = above.subplot_mosaic("abc;def")
    kept = 100 * table[["topk_mass_80", "block_topk_mass_80"]]
    scale = {"low": np.nanmin(kept), "high": 100}
    # rows keep whole keys or blocks: what a target of 80 % achieves is not always 80 %
    topk, blocks = (100 * profile.kept(profile.targets.method(method, 0.8))[0] for method in METHODS)
    mass, share = "% of dense mass", "% of pairs"

    def draw(panel: str, values: Any, title: str, unit: str, **scale: Any) -> None:
        _map(panels[panel], table.assign(value=values), title, unit, scale)

    draw("a", kept["topk_mass_80"], f"Mass kept by top-k at {topk:.0f} % sparsity", mass, **scale)
    draw("b", kept["block_topk_mass_80"], f"Mass kept by blocks at {blocks:.0f} % sparsity", mass, **scale)
    draw("c", 100 * table["topk_sparsity_95"], "Top-k sparsity that keeps 95 % of mass", share)
    draw("d", table["entropy"], "Entropy of dense attention", "nats", colours=AMOUNT)
    draw("e", table["distance"], "Mean distance attended", "tokens", colours=AMOUNT)
    draw("f", 100 * _targets(table, budgets), f"Recommended {_word(budgets)} sparsity", "% of keys")
    for axes, method in zip(below.subplots(1, 2), METHODS, strict=True):
        _curves(axes, profile, curves[curves["method"] == method], method, budgets)
    figure.savefig(path, dpi=DPI)


def _map(axes: Axes, table: pd.DataFrame, title: str, unit: str, scale: dict[str, Any]) -> None:
    layers, heads = range(table["layer"].max() + 1), range(table["head"].max() + 1)
    grid = table.pivot(index="layer", columns="head", values="value").reindex(index=layers, columns=heads)
    if grid.isna().all(axis=None):
        frame(axes, grid, title)
        _only_self(axes)
    else:
        draw_scale(axes, draw_map(axes, grid, title, **scale), unit)


def _curves(axes: Axes, profile: Profile, curves: pd.DataFrame, method: str, budgets: Budgets) -> None:
    axes.set_title(f"Mass against sparsity, {METHODS[method]}", fontsize="medium")
    axes.set(xlabel="achieved sparsity (% of valid pairs not attended)", ylabel="kept mass (% of dense mass)")
    axes.set(xlim=(0, 100), ylim=(0, 102))
    finish(axes, "both")
    if curves.empty:
        _only_self(axes)
        return
    for _, one in curves.groupby(["layer", "head"]):
        (line,) = axes.plot(100 * one["sparsity"], 100 * one["mass"], color=QUIET, linewidth=0.6, alpha=0.35)
    line.set_label("each head")
    best = [
        profile.recommend(sparsity=each, method=method).expected for each in profile.targets.sparsities[::2]
    ]
    for colour, points, word in (
        (BLUE, [each["uniform"] for each in best], "one sparsity for all heads"),
        (VERMILLION, best, "a sparsity for each head, as many pairs"),
    ):
        axes.plot(*_percent(points), color=colour, linewidth=2.2, label=word)
    if method == budgets.expected["method"]:
        for colour, point in ((BLUE, budgets.expected["uniform"]), (VERMILLION, budgets.expected)):
            share, mass = _percent([point])
            word = f"{mass[0]:.1f} % of mass at {share[0]:.1f} % sparsity"
            axes.plot(share, mass, "o", color=colour, markersize=8, markeredgecolor="white", label=word)
    axes.legend(frameon=False, loc="lower left")


def _only_self(axes: Axes) -> None:
    axes.text(0.5, 0.5, "only in self-attention", transform=axes.transAxes, ha="center", color=QUIET)


def _percent(points: list[Any]) -> np.ndarray:
    return 100 * np.array([[point["sparsity"], point["mass"]] for point in points]).T


def _word(budgets: Budgets) -> str:
    return METHODS[budgets.expected["method"]]


def _targets(table: pd.DataFrame, budgets: Budgets) -> np.ndarray:
    found = []
    for name, head in zip(table["name"], table["head"], strict=True):
        method = budgets.methods.get(name)
        own = method.methods[head] if isinstance(method, PerHead) else method
        found.append(np.nan if own is None else own.sparsity)
    return np.array(found)
