"""Exact row rules on CPUs: nothing L x L is held, and what is not kept costs little more than its score."""

from dataclasses import replace

import torch
from torch import Tensor

from crisp_attention.kernels.blocks import goes_by_sight, lacks_blocks, visible_pairs
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu import linear
from crisp_attention.kernels.cpu.plan import BY_ROWS, ENTMAX15, LANES, RANDOM, SPARSEMAX, code_of
from crisp_attention.kernels.lightest import is_unwatched, lightest
from crisp_attention.kernels.memory import widened
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import called
from crisp_attention.methods.rules import Entmax, RandomK

FEW = 2  # queries that keys of blocks are not packed for
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lacks(call: Call) -> str | None:
    """What this kernel cannot do of the call, None if it can."""
    if call.query.device.type != "cpu":
        return f"the device {call.query.device.type}"
    if call.query.dtype not in DTYPES:
        return f"{call.query.dtype}"
    if 0 in call.query.shape or 0 in call.key.shape:
        return "empty tensors"
    if isinstance(call.method, PerHead):
        return "methods by head"
    if goes_by_sight(call):
        return _lacks_of_sight(call)
    if missing := lacks_blocks(call, call.method.layout):
        return missing
    if call.blocks is not None:
        if call.blocks.blocks.size > LANES and call.blocks.blocks.size % LANES:
            return f"blocks of {call.blocks.blocks.size} keys (fewer than {LANES} or a multiple are needed)"
        if call.modifier is not None:
            return f"blocks with {call.modifier}"
    code = code_of(call.method.rule)
    if code is None or (code[0] in BY_ROWS and call.blocks is not None):
        return f"the rule {called(call.method.rule)}" + " on blocks" * (code is not None)
    if call.sinks is not None and code[0] in (ENTMAX15, SPARSEMAX):
        return "entmax with attention sinks"
    return _lacks_of_rows(call, code[0]) if code[0] in BY_ROWS else None


def _lacks_of_sight(call: Call) -> str | None:
    assert isinstance(call.method, Method)
    layout, rule = f"the layout {called(call.method.layout)}", call.method.rule
    if call.modifier is not None:
        return f"{layout} with {call.modifier}"
    code = code_of(rule)
    if code is None or code[0] in BY_ROWS:
        return f"the rule {called(rule)} on {layout}"
    return None


def _lacks_of_rows(call: Call, rule: int) -> str | None:
    if rule == RANDOM and call.seed is None:
        return "a seed"
    given = {
        "a softcap": call.softcap,
        "attention sinks": call.sinks,
        "a bias that learns": call.bias if call.bias is not None and call.bias.requires_grad else None,
    }
    name = "random keys" if rule == RANDOM else "entmax"
    return next((f"{name} with {what}" for what, each in given.items() if each is not None), None)


def computes_branch(call: Call) -> bool:
    """Whether `attention` gives the output with that of the method's branch."""
    method = call.method
    if not isinstance(method, Method) or isinstance(method.rule.temperature, str):
        return False  # a learned temperature is in the queries, which the branch takes as they are
    return linear.adds_onto(method.branch, call)


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) in the query's dtype; scores, selection and weights are float32."""
    method, graph = call.method, call.blocks
    assert isinstance(method, Method)
    by_sight = goes_by_sight(call)
    if graph is not None and graph.blocks.size % LANES:
        # small blocks, which are best as a mask for each pair
        with torch.no_grad():
            call = replace(call, valid=visible_pairs(call.rows, method, graph), span=None)
            graph = None
    states = tuple(each.float() for each in (call.query, call.key, call.value))
    if graph is None or not computes_branch(call):  # whose features are of the width as it is
        # without a backward pass, queries and keys that are packed may be of any width: zeros change no bit of a score
        packed = graph is None and not by_sight and is_unwatched(states) and call.query.shape[2] > FEW
        first = 2 if packed and type(method.rule) is not RandomK else 0
        states = *states[:first], *map(_whole_vectors, states[first:])
    seed = torch.zeros((), dtype=torch.int64, device=call.query.device)
    if call.dropout > 0:  # without it torch's generator is left alone
        seed = call.draw()
    if graph is not None:
        output = _by_graph(call, graph, states, seed)
    else:
        output = (_by_sight if by_sight else _by_rows)(call, states, seed)
    return output[..., : call.value.shape[-1]].to(call.query.dtype)


def _whole_vectors(states: Tensor) -> Tensor:
    """As wide as whole vectors are: single numbers take longer than the copy."""
    return widened(states, -states.shape[-1] % LANES)


def _by_rows(call: Call, states: tuple[Tensor, ...], seed: Tensor) -> Tensor:
    """Output of float32 states (query, key and value) where a row may see all its valid keys."""
    from crisp_attention.kernels.cpu.operators import rows, rows_now

    method = call.method
    assert isinstance(method, Method)
    code = code_of(method.rule)
    assert code is not None
    own = None
    if code[0] == RANDOM:  # which draws by the positions of keys
        call = call.masked()
        assert call.rows.seed is not None
        own = call.rows.seed[..., 0].expand(call.query.shape[:3]).to(torch.int32)
    if isinstance(method.rule, Entmax) and method.rule.alpha == "learned":
        own = method.rule.exponents(call.rows).float()
    bias, sinks = (None if each is None else each.float() for each in (call.bias, call.sinks))
    when = call.causal, call.first_query, call.scale, call.softcap or 0.0, call.dropout
    given = [*states, *(each for each in (bias, sinks, own) if each is not None)]
    output, *_ = lightest(rows_now, rows, given)(
        *states, call.valid, bias, sinks, call.span, seed, own, *code, *when
    )
    return output


def _by_sight(call: Call, states: tuple[Tensor, ...], seed: Tensor) -> Tensor:
    """Output of float32 states (query, key and value) by numbers of tokens."""
    from crisp_attention.kernels.cpu import sighted_operators

    method = call.method
    assert isinstance(method, Method)
    code = code_of(method.rule)
    assert code is not None
    with torch.no_grad():
        sight = method.layout.sight(call.rows)
    assert sight is not None
    query, key, seeds, *numbers = sighted_operators.numbers_of(sight)
    when = call.causal, call.first_query, call.scale, call.dropout
    run = lightest(sighted_operators.attend, sighted_operators.sighted, states)
    output, *_ = run(*states, call.span, query, key, seeds, seed, *code, *when, *numbers)
    return output


def _by_graph(call: Call, graph: BlockGraph, states: tuple[Tensor, ...], seed: Tensor) -> Tensor:
    """Output of float32 states (query, key and value) by a graph of blocks."""
    from crisp_attention.kernels.cpu import block_operators, chosen_operators
    from crisp_attention.kernels.cpu.linear.operators import sparse_linear

    method, blocks = call.method, graph.blocks
    assert isinstance(method, Method)
    code = code_of(method.rule)
    assert code is not None
    when = call.causal, call.first_query, call.scale, call.dropout, blocks.size
    if (choice := graph.choice) is not None:
        plain = chosen_operators.step if call.query.shape[2] <= FEW else chosen_operators.attend
        run = lightest(plain, chosen_operators.chosen, states)
        numbers = choice.sparsity, choice.sink_blocks, choice.local_blocks
        output, *_ = run(*states, call.span, seed, *code, *when, *numbers)
        return output
    counts, listed = graph.listed()
    if computes_branch(call) and isinstance(method.branch, Linear):
        learned = linear.marginal_of(method.branch, call), *linear.projection(method.branch, call)
        how = call.scale, call.dropout, blocks.size, linear.MAPS[method.branch.feature_map]
        ordered = map(blocks.in_order, states)
        output, *_ = sparse_linear(*ordered, listed, counts, blocks.lengths, seed, *learned, *code, *how)
        return blocks.back(output)
    band = () if graph.band is None else graph.band.numbers(call.key.shape[2])
    run = lightest(block_operators.attend, block_operators.blocks, states)
    few = FEW if run is block_operators.attend else 0
    if blocks.order is None or blocks.span is not None:
        output, *_ = run(*states, listed, counts, call.span, seed, *code, *when, band, few)
        return output
    ordered, spans = map(blocks.in_order, states), block_operators.spans_of(blocks.lengths)
    output, *_ = run(*ordered, listed, counts, spans, seed, *code, *when, band, few)
    return blocks.back(output)
