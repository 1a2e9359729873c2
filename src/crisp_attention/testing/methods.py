"""The contract of a method, whatever it computes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.method import AnyMethod, Method, as_method
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rules import Rule
from crisp_attention.methods.spec import parse

HEADS, GROUPS, WIDTH = 4, 2, 6


class MethodContract:
    """Tests of a method on the reference: derive a class `Test…`, and give it a `method`.

    Attributes
    ----------
    method
        The method, or a rule or a layout alone.
    parameters
        What a layer of 4 heads, 2 key heads and width 6 holds for it, such as `{"rule.alpha": tensor}`; by default
        what trained ones start from. Fitted ones have to be given.
    causal
        Whether causal attention can have it; if not, what would ask for it is skipped, or asked of an encoder.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from crisp_attention.testing import MethodContract
    >>> class TestMine(MethodContract):
    ...     method = crisp.Method(crisp.Window(3), crisp.TopK(0.5))
    """

    method: ClassVar[AnyMethod]
    parameters: ClassVar[Mapping[str, Tensor] | None] = None
    causal: ClassVar[bool] = True

    @pytest.fixture
    def tested(self) -> Method:
        """The method that the tests run on."""
        return as_method(self.method)

    def call(
        self, method: Method, length: int, batch: int = 2, queries: int | None = None, **more: Any
    ) -> Call:
        """A self-attention in float64 of `length` tokens, or of the last `queries` of them."""
        states = []
        for seed, heads in enumerate((HEADS, GROUPS, GROUPS)):
            draw = torch.Generator().manual_seed(seed)
            states.append(torch.randn(batch, 64, heads, WIDTH, generator=draw, dtype=torch.float64))
        query, key, value = (each[:, :length].transpose(1, 2) for each in states)
        query = query if queries is None else query[:, :, -queries:]
        held = self.parameters
        if held is None:
            wanted = method.parameters(Shape(HEADS, GROUPS, WIDTH))
            held = {name: each.value for name, each in wanted.items() if each.trained}
        drawn = torch.tensor(11) if method.uses_seed else None
        return replace(Call(query, key, value, method, scale=0.5, seed=drawn, parameters=held), **more)

    def attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Output and, unless the method has a branch, weights by the reference."""
        return dispatch.attention(call, dispatch.REFERENCE, weights=not call.method.has_branch)

    def skip_without_causal(self) -> None:
        """Skip a test that asks for causal attention if the method is not for it."""
        if not self.causal:
            pytest.skip("causal attention cannot have it")

    def test_it_survives_json_and_its_spec(self, tested: Method) -> None:
        assert Method.from_dict(json.loads(json.dumps(tested.to_dict()))) == tested
        assert parse(tested.spec) == tested

    def test_only_valid_pairs_have_weight_and_a_row_without_any_gives_zeros(self, tested: Method) -> None:
        valid = torch.ones(2, 1, 9, 9, dtype=torch.bool)
        if self.causal:
            valid = valid.tril()
        valid[0, :, 3] = False
        valid[1] = False
        for more in ({}, {"sinks": torch.ones(HEADS)}, {"dropout": 0.5}):
            call = self.call(tested, 9, valid=valid, **more)
            leaves = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
            output, weights = self.attend(replace(call, query=leaves[0], key=leaves[1], value=leaves[2]))
            assert output.isfinite().all()
            if weights is not None:
                assert (weights[~valid.expand_as(weights)] == 0).all()
                assert (output[1] == 0).all()
                assert (output[0, :, 3] == 0).all()
            output.square().sum().backward()
            for leaf in leaves:
                assert leaf.grad is not None
                assert leaf.grad.isfinite().all()
                assert weights is None or (leaf.grad[1] == 0).all()

    def test_an_example_alone_is_the_example_in_a_padded_batch(self, tested: Method) -> None:
        if tested.uses_seed:
            pytest.skip("it draws for every example")
        wanted, _ = self.attend(self.call(tested, 9))
        for left in (0, 5, 23):
            place = torch.arange(32)
            call = self.call(tested, 32, valid=((place >= left) & (place < left + 9))[None, None, None])
            moved = [each.roll(left, dims=2) for each in (call.query, call.key, call.value)]
            output, _ = self.attend(replace(call, query=moved[0], key=moved[1], value=moved[2]))
            torch.testing.assert_close(output[:, :, left : left + 9], wanted, rtol=1e-9, atol=1e-9)

    def test_under_a_causal_mask_nothing_depends_on_later_tokens(self, tested: Method) -> None:
        self.skip_without_causal()
        whole, _ = self.attend(self.call(tested, 20, causal=True))
        shorter, _ = self.attend(self.call(tested, 13, causal=True))
        torch.testing.assert_close(whole[:, :, :13], shorter, rtol=1e-9, atol=1e-9)

    def test_a_token_at_a_time_sees_what_the_whole_causal_matrix_sees(self, tested: Method) -> None:
        self.skip_without_causal()
        whole, _ = self.attend(self.call(tested, 20, causal=True))
        for length in (1, 7, 20):
            step, _ = self.attend(self.call(tested, length, queries=1))
            torch.testing.assert_close(step[:, :, 0], whole[:, :, length - 1], rtol=1e-9, atol=1e-9)

    def test_gradients_are_right(self, tested: Method) -> None:
        call = self.call(tested, 5, batch=1, causal=self.causal, softcap=3.0)

        def output(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return dispatch.attention(replace(call, query=query, key=key, value=value), dispatch.REFERENCE)[0]

        leaves = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
        assert torch.autograd.gradcheck(output, leaves, fast_mode=True)

    def test_a_call_again_gives_the_same_bits(self, tested: Method) -> None:
        torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
        try:
            first, again = (self.attend(self.call(tested, 17))[0] for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        assert first.equal(again)
        assert first.equal(self.attend(self.call(tested, 17))[0])

    def test_scores_are_not_rounded_to_half_precision(self, tested: Method) -> None:
        if tested.has_branch:
            pytest.skip("it has no weights")
        call = self.call(tested, 16)
        half = [each.bfloat16() for each in (call.query, call.key, call.value)]
        output, weights = self.attend(replace(call, query=half[0], key=half[1], value=half[2]))
        _, exact = self.attend(
            replace(call, query=half[0].double(), key=half[1].double(), value=half[2].double())
        )
        assert output.dtype == torch.bfloat16
        assert weights is not None
        assert exact is not None
        torch.testing.assert_close(weights.double(), exact, rtol=2**-7, atol=1e-6)

    def test_where_it_says_that_it_drops_nothing_it_is_dense(self, tested: Method) -> None:
        lengths = [length for length in (1, 2, 9, 30) if tested.drops_nothing(length)]
        assert lengths or not tested.drops_nothing()
        for length in lengths:
            call = self.call(tested, length)
            key, value = (each.repeat_interleave(HEADS // GROUPS, dim=1) for each in (call.key, call.value))
            dense = scaled_dot_product_attention(call.query, key, value, scale=call.scale)
            torch.testing.assert_close(self.attend(call)[0], dense, rtol=1e-9, atol=1e-9)

    def test_the_fastest_kernel_is_the_reference_to_rounding(self, tested: Method) -> None:
        call = self.call(tested, 48, valid=(torch.arange(48) < torch.tensor([[48], [37]]))[:, None, None])
        single = [each.float() for each in (call.query, call.key, call.value)]
        call = replace(call, query=single[0], key=single[1], value=single[2])
        found, wanted = (
            dispatch.attention(call, backend)[0] for backend in (dispatch.AUTO, dispatch.REFERENCE)
        )
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1, :, :37], wanted[1, :, :37], rtol=1e-4, atol=1e-5)

    def test_it_compiles_into_one_graph(self, tested: Method) -> None:
        call = self.call(tested, 16)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return dispatch.attention(replace(call, query=query, key=key, value=value))[0]

        torch.compiler.reset()
        compiled = torch.compile(attend, fullgraph=True, backend="eager")
        states = (call.query, call.key, call.value)
        torch.testing.assert_close(compiled(*states), attend(*states), rtol=1e-9, atol=1e-9)


class RuleContract(MethodContract):
    """Tests of a rule, on every valid pair: derive a class `Test…` with `rule = Mine(…)`.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from crisp_attention.testing import RuleContract
    >>> class TestMine(RuleContract):
    ...     rule = crisp.TopK(0.5)
    """

    rule: ClassVar[Rule]

    @pytest.fixture
    def tested(self) -> Method:
        """The rule on every valid pair."""
        return Method(rule=self.rule)

    def test_it_keeps_a_subset_of_what_is_visible(self, tested: Method) -> None:
        call = self.call(tested, 12, causal=True)
        rows = call.rows
        visible = rows.valid & (torch.arange(12) % 3 > 0)
        keep = tested.rule.select(rows, visible)
        assert keep.dtype == torch.bool
        assert keep.shape == rows.scores.shape
        assert not (keep & ~visible).any()
        weights = tested.rule.weigh(rows, keep)
        assert (weights[~keep] == 0).all()
        assert weights.isfinite().all()


class LayoutContract(MethodContract):
    """Tests of a layout, with the softmax over what it shows: derive a class `Test…` with `layout = Mine(…)`.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from crisp_attention.testing import LayoutContract
    >>> class TestMine(LayoutContract):
    ...     layout = crisp.Window(3)
    """

    layout: ClassVar[Layout]

    @pytest.fixture
    def tested(self) -> Method:
        """The layout with the softmax over all it shows."""
        return Method(layout=self.layout)

    def test_it_shows_a_subset_of_what_is_valid(self, tested: Method) -> None:
        for more in (
            {},
            {"causal": self.causal},
            {"valid": torch.arange(48) < torch.tensor([[[[48]]], [[[29]]]])},
        ):
            rows = self.call(tested, 48, **more).rows
            visible = tested.layout.visible(rows)
            assert visible.dtype == torch.bool
            assert visible.shape[-2:] == (48, 48)
            assert not (visible & ~rows.valid).any()
            assert visible.any()

    def test_its_blocks_are_what_it_shows(self, tested: Method) -> None:
        real = torch.arange(48) < torch.tensor([[[[48]]], [[[29]]]])
        for valid in (None, real):
            rows = self.call(tested, 48, valid=valid).rows
            graph = tested.layout.blocks(rows)
            if graph is not None:
                queries = (
                    torch.ones(1, 1, 48, 1, dtype=torch.bool) if valid is None else valid.transpose(2, 3)
                )
                wanted = tested.layout.visible(rows).expand(2, HEADS, 48, 48) & queries
                assert (graph.pairs(rows) & rows.valid & queries).equal(wanted)
