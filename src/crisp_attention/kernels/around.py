"""The steps around every kernel: the temperature before it, the branch after it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from crisp_attention.kernels.blocks import exactly, with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.registry import branch_kernel
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.branches import Branch
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import TEMPERATURE, Method
from crisp_attention.methods.temperature import LEARNED, factors


def tempered(call: Call) -> Call:
    """The call with its rule's temperature in the queries or, where it is one number, in their scale."""
    methods = call.method.methods if isinstance(call.method, PerHead) else (call.method,)
    given = [each.rule.temperature for each in methods]
    if all(each == 1 for each in given):
        return call
    if len(given) == 1 and not isinstance(given[0], str) and call.dense is None:
        return replace(call, scale=call.scale * given[0])
    raw = call.parameters.get(TEMPERATURE)
    if raw is None and LEARNED in given:
        raise ValueError(
            "temperature='learned' needs a parameter, which only a model holds: use crisp.sparsify"
        )
    own = factors(given * (call.query.shape[1] // len(given)), raw, call.query)
    query = (call.query * own[:, None, None]).to(call.query.dtype)
    if call.dense is not None:  # whose queries are as they were
        place = torch.arange(query.shape[2], device=query.device)
        first, end, _ = call.dense.indices(query.shape[2])
        query = torch.where(((place >= first) & (place < end))[:, None], call.query, query)
    return replace(call, query=query)


def with_branches(output: Tensor, call: Call, blocks: BlockGraph | None, *, compiled: bool) -> Tensor:
    """A kernel's output (B, H, L, Dv) of a call, plus that of the branches; `blocks` are those of the kernel.

    Branches are computed by their definition or, if `compiled`, by a kernel that can.
    """
    if not call.method.has_branch:
        return output
    exact = torch.promote_types(output.dtype, torch.float32)

    def more(branch: Branch, part: Call, heads: list[int] | None, tokens: slice) -> Tensor:
        own = output if heads is None else output[:, heads]
        kernel = branch_kernel(branch, part) if compiled else None
        if kernel is None:
            return branch.attention(part, own[:, :, tokens])
        return kernel.attention(branch, part, own[:, :, tokens])

    with exactly(output.device):
        added = _by_branches(call, blocks, more)
    return (output.to(exact) + added).to(output.dtype)


def branch_pairs(call: Call, blocks: BlockGraph | None) -> Tensor:
    """The pairs that a call's branches attend to, bool (B, H, L, S)."""

    def pairs(branch: Branch, part: Call, heads: list[int] | None, tokens: slice) -> Tensor:
        return branch.pairs(part).expand(*part.query.shape[:3], part.key.shape[2])

    count = call.query.shape[2]
    first, end, _ = call.others.indices(count)
    found = _by_branches(call, blocks, pairs)
    return found if call.dense is None else pad(found, (first, count - end))


def _by_branches(call: Call, blocks: BlockGraph | None, of: Callable[..., Tensor]) -> Tensor:
    """What `of` says of each branch, (B, H, L, …): zeros for heads without one and for tokens that stay dense."""
    if isinstance(call.method, PerHead):
        parts = [(call.of(heads, method), heads) for method, heads in call.method.groups().items()]
        found = [
            (_of_one(part, None, of, heads) if part.method.has_branch else None, heads)
            for part, heads in parts
        ]
        like = next(each for each, _ in found if each is not None)
        filled = [
            like.new_zeros(like.shape[0], len(heads), *like.shape[2:]) if each is None else each
            for each, heads in found
        ]
        return together(filled, [heads for _, heads in found])
    return _of_one(call, blocks, of, None)


def _of_one(
    call: Call, blocks: BlockGraph | None, of: Callable[..., Tensor], heads: list[int] | None
) -> Tensor:
    branch = call.method.branch if isinstance(call.method, Method) else None
    assert branch is not None
    if call.dense is None:
        part = with_blocks(tempered(call)) if heads is not None else None
        chosen = blocks if part is None else part.blocks
        return of(branch, replace(call, blocks=chosen), heads, slice(None))
    others = call.others
    rows = call.rows.of_tokens(others)
    inner = replace(
        call,
        query=rows.query,
        key=rows.key,
        value=call.value[:, :, others],
        valid=rows.mask,
        span=rows.span,
        bias=rows.bias,
        dense=None,
    )
    found = of(branch, with_blocks(inner), heads, others)
    return pad(found, (0, 0, others.start, call.query.shape[2] - others.stop))


def together(outputs: list[Tensor], heads: list[list[int]]) -> Tensor:
    """Groups of heads (B, h, ...), in the order of the heads."""
    grouped = [head for each in heads for head in each]
    order = sorted(range(len(grouped)), key=grouped.__getitem__)
    return torch.cat(outputs, dim=1)[:, order]
