"""The contract of a kernel: it computes what the reference does, or says what it lacks."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from crisp_attention.kernels import dispatch, reference
from crisp_attention.kernels.around import tempered
from crisp_attention.kernels.blocks import exactly, with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.registry import KernelModule
from crisp_attention.methods.method import Method
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.rules import TopK, TopP
from crisp_attention.testing.calls import CASES, METHODS, Case

ULPS = {torch.float32: 4, torch.bfloat16: 1, torch.float16: 1}
SMALLEST = 2.0**-148

every_case = pytest.mark.parametrize(("turn", "case"), list(enumerate(CASES.values())), ids=CASES)
# what is learned is in the queries when a kernel gets them, or computed by the reference
FIXED = {name: method for name, method in METHODS.items() if not method.has_parameters}
every_method = pytest.mark.parametrize("name", FIXED)


class KernelContract:
    """Tests of a kernel: derive a class `Test…`, and give it a `kernel`.

    Attributes
    ----------
    kernel
        A module, or an object, with `lacks(call)` and `attention(call)`.
    methods
        The methods that it computes, by name; other methods are not tested.
    device
        Where the tensors are.
    longest
        Calls with more queries are left out.
    smallest
        What errors may always reach: the least numbers of what it multiplies with.
    at_most
        How many methods take each case, in turn; by default all that can.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from crisp_attention.kernels import reference
    >>> from crisp_attention.testing import KernelContract
    >>> class TestMine(KernelContract):
    ...     kernel, methods = reference, {"topk": crisp.TopK(0.5)}
    """

    kernel: ClassVar[KernelModule]
    methods: ClassVar[Mapping[str, Method]] = FIXED
    device: ClassVar[str] = "cpu"
    longest: ClassVar[int] = 2**63 - 1
    smallest: ClassVar[float] = SMALLEST
    at_most: ClassVar[int | None] = None

    @pytest.fixture(autouse=True)
    def _uninitialised_memory_is_nan(self) -> Iterator[None]:
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert torch.empty(1).isnan().all()
        yield
        torch.use_deterministic_algorithms(False)

    def lacks(self, call: Call) -> str | None:
        """What the kernel lacks of a call as dispatch would hand it over."""
        return self.kernel.lacks(with_blocks(tempered(call)))

    def attention(self, call: Call) -> Tensor:
        """The kernel's output, as dispatch would compute it."""
        given = with_blocks(tempered(call))
        with exactly(given.query.device):
            return self.kernel.attention(given)

    def calls(self, case: Case, turn: int | None = None) -> Iterator[tuple[str, Call]]:
        """The calls of a case that the kernel can do, by the name of the method; in a `turn`, the `at_most` next."""
        names = list(self.methods)
        if turn is not None and self.at_most is not None:
            first = turn * self.at_most % len(names)
            names = [*names[first:], *names[:first]]
        found = 0
        for name in names:
            method = self.methods[name]
            if case.fits(method) and case.length <= self.longest:
                call = case.call(method, self.device)
                if self.lacks(call) is None:
                    yield name, call
                    found += 1
                    if turn is not None and found == self.at_most:
                        return

    def results(self, call: Call, dtype: torch.dtype | None = None, own: bool = True) -> list[Tensor]:
        """Output in float64 of the kernel or the reference, computed in `dtype`; and the gradients that it has."""
        learner = _learner(call, dtype)
        if own and (lacking := self.lacks(learner)):
            assert "gradients" in lacking, lacking
            return [_of_real_queries(call, self.attention(call)).double()]
        output = self.attention(learner) if own else dispatch.attention(learner, dispatch.REFERENCE)[0]
        output = _of_real_queries(call, output)
        slopes = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=torch.float64)
        output.backward(slopes.reshape(output.shape).to(call.query.dtype).to(output.dtype))
        leaves = [learner.query, learner.key, learner.value, learner.bias, learner.sinks]
        slots = [leaf.grad for leaf in [*leaves, *learner.parameters.values()] if leaf is not None]
        return [output.detach().double(), *(slope.double() for slope in slots if slope is not None)]

    def test_it_says_what_it_lacks(self) -> None:
        can, cannot = 0, 0
        for case in CASES.values():
            for method in self.methods.values():
                if case.fits(method) and case.length <= self.longest:
                    lacking = self.lacks(case.call(method, self.device))
                    can, cannot = can + (lacking is None), cannot + (lacking is not None)
                    assert lacking is None or lacking.strip()
        assert can, f"the kernel can do none of {cannot} calls"

    @every_case
    def test_as_near_to_float64_as_the_reference(self, turn: int, case: Case) -> None:
        for name, call in self.calls(case, turn):
            exact = self.results(call, torch.float64, own=False)
            theirs, found = self.results(call, own=False), self.results(call)
            floor = ULPS[case.dtype] * torch.finfo(case.dtype).eps
            assert len(found) in (1, len(exact)), name  # the output alone where the kernel has no gradients
            for at, (right, ours, other) in enumerate(zip(exact, found, theirs, strict=False)):
                what = f"{name}: {'a gradient' if at else 'the output'}"
                assert ours.isfinite().all(), what
                allowed = (
                    (3 if at else 2) * (other - right).abs().max() + floor * right.abs().max() + self.smallest
                )
                assert (ours - right).abs().max() <= allowed, what

    @pytest.mark.parametrize("causal", [False, True])
    def test_a_key_that_is_nan_reaches_exactly_the_rows_that_see_it(self, causal: bool) -> None:
        length = min(64, self.longest)
        for name, call in self.calls(Case(length, causal=causal), turn=int(causal)):
            clean = self.attention(call)
            call.key[0, 1, 9] = torch.nan
            reached = reference.attention(call)[0].isnan().any(dim=-1)
            assert reached[0, 1].any(), name
            assert not reached[1].any(), name
            output = self.attention(call)
            broken = output.isnan().any(dim=-1)
            # in the reference it reaches causal rows before it as well, as in eager attention
            assert broken.equal(reached & (torch.arange(length, device=self.device) >= 9 * causal)), name
            assert output[~broken].equal(clean[~broken]), name

    def test_equal_scores_keep_the_first_keys(self) -> None:
        for name, call in self.calls(CASES["equal scores"]):
            unit = torch.eye(33, device=self.device).expand(2, 4, 33, 33).contiguous()
            weights = self.attention(replace(call, value=unit))
            wanted = dispatch.attention(replace(call, value=unit), dispatch.REFERENCE)[0]
            assert (weights > 0).equal(wanted > 0), name
            torch.testing.assert_close(weights, wanted, rtol=1e-6, atol=0, msg=name)

    @pytest.mark.parametrize(
        ("rule", "count"),
        [
            *((TopP(mass), round(50 * mass)) for mass in (0.06, 0.3, 0.54, 0.6, 0.8, 0.98)),
            (TopP(1e-12), 1),
            *((TopK(sparsity), 50 - round(50 * sparsity)) for sparsity in (0.02, 0.46, 0.7, 0.94)),
        ],
        ids=str,
    )
    def test_fifty_equal_keys_reach_a_share_exactly(self, rule: TopK | TopP, count: int) -> None:
        """However the share is rounded: 0.54 in float32 is more than 27 of 50."""
        states = torch.ones(1, 1, 50, 4, device=self.device)
        unit = torch.eye(50, device=self.device)[None, None]
        call = Call(states[:, :, :1], states, unit, Method(rule=rule), scale=1.0)
        if self.lacks(call) is None:
            assert (self.attention(call).flatten() > 0).tolist() == [True] * count + [False] * (50 - count)

    def test_a_row_without_a_valid_key_gives_zeros(self) -> None:
        for name, call in self.calls(CASES["no valid key"]):
            output, in_query, in_key, in_value, *_ = self.results(call)
            for rows in (output, in_query):
                assert (rows[0, :, ::3] == 0).all(), name
                assert (rows[1] == 0).all(), name
            for columns in (in_key, in_value):
                assert (columns[1] == 0).all(), name
                assert (columns[0, :, :3] == 0).all(), name

    def test_a_call_again_gives_the_same_bits(self) -> None:
        for turn, dtype in enumerate((torch.float32, torch.bfloat16)):
            for name, call in self.calls(Case(min(130, self.longest), dtype=dtype), turn):
                first, second = (self.results(call) for _ in range(2))
                assert all(a.equal(b) for a, b in zip(first, second, strict=True)), name

    @every_method
    def test_dropout_drops_its_share_and_the_gradients_go_where_it_did_not(self, name: str) -> None:
        """With unit vectors as values the output is the weights, and shows what was dropped."""
        call = Case(32, width=32, groups=2, batch=3).call(FIXED[name], self.device)
        unit = torch.eye(32, device=self.device).expand(3, 2, 32, 32).contiguous()
        call = replace(call, value=unit, dropout=0.25)
        if name not in self.methods or self.lacks(_learner(call)) is not None:
            pytest.skip("the kernel lacks it")
        torch.manual_seed(5)
        output, *slopes = self.results(call)
        torch.manual_seed(5)
        assert self.results(call)[0].equal(output)
        assert not self.results(call)[0].equal(output)

        exact = _learner(replace(call, dropout=0.0), torch.float64)
        _, weights = dispatch.attention(exact, dispatch.REFERENCE, weights=True)
        assert weights is not None
        stay = output > 0
        torch.testing.assert_close(output[stay], weights[stay] / 0.75, rtol=1e-5, atol=1e-6)
        kept = stay.sum() / (weights > 0).sum()
        assert abs(kept - 0.75) < 5 * (0.75 * 0.25 / (weights > 0).sum()) ** 0.5

        again = (weights * stay / 0.75) @ exact.value.repeat_interleave(2, dim=1)
        along = torch.linspace(-1, 1, again.numel(), device=self.device, dtype=torch.float64)
        again.backward(along.reshape(again.shape).float().double())
        for ours, leaf in zip(slopes, [exact.query, exact.key, exact.value], strict=False):
            assert leaf.grad is not None
            torch.testing.assert_close(ours, leaf.grad.double(), rtol=1e-4, atol=1e-5)


def _learner(call: Call, dtype: torch.dtype | None = None) -> Call:
    """The call with leaves that want gradients, a bias only if it did; in `dtype`."""
    made = {
        name: tensor.detach().to(dtype or tensor.dtype).requires_grad_(name != "bias" or tensor.requires_grad)
        for name in ("query", "key", "value", "bias", "sinks")
        if (tensor := getattr(call, name)) is not None
    }
    parameters = {name: value.detach().requires_grad_() for name, value in call.parameters.items()}
    return replace(call, **made, parameters=parameters)


def _of_real_queries(call: Call, output: Tensor) -> Tensor:
    if not call.method.block_size or (call.valid is None and call.span is None):
        return output
    # the output of padded queries under blocks is arbitrary
    square = replace(call, causal=False).rows.valid
    return torch.where(valid_queries(square).unsqueeze(-1), output, 0.0)
