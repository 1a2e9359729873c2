"""SLA as one name for a layout and a branch."""

from crisp_attention.methods.branches import Linear
from crisp_attention.methods.combined import DIGITS, check_shares
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method


def SparseLinear(  # noqa: N802 (written where a class of a rule or a layout may stand)
    critical: float = 0.05,
    negligible: float = 0.1,
    block_size: int = 64,
    feature_map: str = "softmax",
    scope: str = "marginal",
    combine: str = "project",
) -> Method:
    """Softmax attention to a row's best blocks, linear attention to all but the worst others (SLA, arXiv 2509.24006).

    It is `Method(BlockTopK(sparsity=1 - critical, local_blocks=0), branch=Linear(...))`. At the start the projection of
    the linear part is zero, so the model computes block-sparse attention; fine-tuning trains it with the model.

    Parameters
    ----------
    critical
        The share of a row's blocks that gets softmax attention, rounded up, at least one, in (0, 1]. The method's
        `sparsity`, which schedules move, is 1 - critical.
    negligible
        The share of a row's blocks that gets nothing, rounded down, in [0, 1); less where a schedule needs them.
    block_size
        Tokens in a block.
    feature_map, scope, combine
        See `Linear`.

    Returns
    -------
    Method
        The method.

    Raises
    ------
    TypeError, ValueError
        For options outside their ranges, and shares that are more than 1 together.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> method = crisp.SparseLinear(critical=0.2, block_size=16)
    >>> method.spec
    'sparse_linear:critical=0.2:block_size=16'
    >>> method.with_sparsity(0.9).spec
    'sparse_linear:critical=0.1:block_size=16'
    """
    check_shares(critical, negligible)
    return Method(
        BlockTopK(round(1 - critical, DIGITS), block_size, local_blocks=0),
        branch=Linear(negligible, feature_map, scope, combine),
    )
