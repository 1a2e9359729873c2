"""Names for a layout, a rule and a branch that belong together."""

from collections.abc import Mapping
from typing import Any

from crisp_attention.methods.branches import Branch, Linear
from crisp_attention.methods.checks import check_number
from crisp_attention.methods.layouts import BlockTopK, Layout
from crisp_attention.methods.options import options_of
from crisp_attention.methods.rules import Dense, Rule

SPARSE_LINEAR = "sparse_linear"
# of `SparseLinear`, with their defaults
OPTIONS: Mapping[str, Any] = {"critical": 0.05, "negligible": 0.1, "block_size": 64} | {
    name: each for name, each in options_of(Linear).items() if name != "negligible"
}
DIGITS = 12  # of 1 - critical, so that a share comes back as it was given


def combined(layout: Layout, rule: Rule, branch: Branch | None) -> tuple[str, dict[str, Any]] | None:
    """The name of such a combination, and its options; None for any other one."""
    if type(layout) is not BlockTopK or type(branch) is not Linear or rule != Dense():
        return None
    if layout.sink_blocks or layout.local_blocks:
        return None
    own = {name: getattr(layout if name == "block_size" else branch, name) for name in list(OPTIONS)[1:]}
    critical = round(1 - layout.sparsity, DIGITS)
    # a schedule may begin with more than what is negligible leaves, which nobody may write
    share = {"critical": critical} if _fit(critical, branch.negligible) else {"sparsity": layout.sparsity}
    return SPARSE_LINEAR, {**share, **own}


def check_shares(critical: float, negligible: float) -> None:
    """Raise TypeError or ValueError unless these can be shares of the same blocks."""
    check_number("critical", critical, "(0, 1]")
    check_number("negligible", negligible, "[0, 1)")
    if not _fit(critical, negligible):
        raise ValueError(
            "critical and negligible are shares of the same blocks, at most 1 together, "
            f"got {critical} and {negligible}: "
            f"beside critical={critical}, negligible may be {round(1 - critical, DIGITS):g} at most"
        )


def _fit(critical: float, negligible: float) -> bool:
    return critical + negligible <= 1 + 10**-DIGITS


def divided(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of `SparseLinear` among the layout and the branch that it stands for, each by its kind and name."""
    given = {**OPTIONS, **options}
    layout = {
        "name": BlockTopK.name,
        "sparsity": round(1 - given.pop("critical"), DIGITS),
        "block_size": given.pop("block_size"),
        "local_blocks": 0,
    }
    return {Layout.kind: layout, Branch.kind: {"name": Linear.name, **given}}
