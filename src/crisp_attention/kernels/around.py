"""The steps around every kernel: the temperature before it, the branch after it."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from crisp_attention.kernels.blocks import exactly, with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.branches import Branch
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import TEMPERATURE
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


def with_branches(output: Tensor, call: Call, blocks: BlockGraph | None) -> Tensor:
    """A kernel's output (B, H, L, Dv) of a call, plus that of the branches; `blocks` are those of the kernel."""
    if not call.method.has_branch:
        return output
    if not isinstance(call.method, PerHead):
        assert call.method.branch is not None
        exact = torch.promote_types(output.dtype, torch.float32)
        with exactly(output.device):
            if call.dense is None:
                more = call.method.branch.attention(replace(call, blocks=blocks), output)
            else:
                more = _beside_dense(call.method.branch, call, output)
        return (output.to(exact) + more).to(output.dtype)
    groups = [(call.of(heads, method), heads) for method, heads in call.method.groups().items()]
    outputs = [
        with_branches(output[:, heads], part, with_blocks(tempered(part)).blocks) for part, heads in groups
    ]
    return together(outputs, [heads for _, heads in groups])


def together(outputs: list[Tensor], heads: list[list[int]]) -> Tensor:
    """Groups of heads (B, h, ...), in the order of the heads."""
    grouped = [head for each in heads for head in each]
    order = sorted(range(len(grouped)), key=grouped.__getitem__)
    return torch.cat(outputs, dim=1)[:, order]


def _beside_dense(branch: Branch, call: Call, output: Tensor) -> Tensor:
    """What a branch adds to the tokens beside those that stay dense, as if they were alone; 0 for these."""
    assert call.dense is not None
    count = output.shape[2]
    first, end, _ = call.dense.indices(count)
    others = slice(end, count) if first == 0 else slice(0, first)
    rows = call.rows.of_tokens(others)
    part = replace(
        call,
        query=rows.query,
        key=rows.key,
        value=call.value[:, :, others],
        valid=rows.mask,
        bias=rows.bias,
        dense=None,
    )
    more = branch.attention(with_blocks(part), output[:, :, others])
    return pad(more, (0, 0, end, 0) if first == 0 else (0, 0, 0, count - first))
