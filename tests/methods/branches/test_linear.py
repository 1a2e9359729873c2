"""Linear attention to marginal blocks: what SLA's paper says of it (3.7 of its specification), and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import BlockTopK, Linear, Method, SparseLinear, TopK, Window
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.testing.calls import Case
from tests.cases import normal
from tests.models.tiny import BATCH, distilbert, logits

MAPS = ("softmax", "elu", "relu", "hedgehog")


def computed(method: Method, case: Case, backend: str = "auto", **parameters: Tensor) -> Tensor:
    call = case.call(method)
    given = {f"branch.{name}": each for name, each in parameters.items()}
    call.parameters.update(given)
    return dispatch.attention(call, backend)[0]


@pytest.mark.parametrize("case", [Case(length=32), Case(length=29, groups=2), Case(length=24, causal=True)])
def test_all_critical_is_dense_attention_and_a_projection_of_zero_leaves_the_critical_blocks(
    case: Case,
) -> None:
    dense = computed(Method(), case)
    torch.testing.assert_close(computed(SparseLinear(1.0, 0.0, 4), case), dense)
    zero = {"weight": torch.zeros(8, 8), "bias": torch.zeros(8)}
    sparse = computed(SparseLinear(0.3, 0.2, 4), case, **zero)
    torch.testing.assert_close(sparse, computed(Method(BlockTopK(0.7, 4, local_blocks=0)), case))
    assert not torch.allclose(sparse, dense)


@pytest.mark.parametrize("shares", [(0.1, 0.9), (0.3, 0.7), (0.35, 0.65)])
@pytest.mark.parametrize("length", [8, 20, 33, 60])
def test_no_block_is_marginal_where_the_others_are_all_of_them(
    shares: tuple[float, float], length: int
) -> None:
    case = Case(length=length)
    method = SparseLinear(*shares, 4, combine="sum")
    assert computed(method, case).equal(computed(Method(method.layout), case))
    call = case.call(method)
    states = [each.requires_grad_() for each in (call.query, call.key, call.value)]
    gradients = torch.autograd.grad((1e6 * dispatch.attention(call)[0]).sum(), states)
    assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("feature_map", MAPS)
@pytest.mark.parametrize("scope", ["marginal", "all"])
def test_sums_of_blocks_are_linear_attention_under_a_mask(feature_map: str, scope: str) -> None:
    method = SparseLinear(0.2, 0.2, 4, feature_map, scope, "alone")
    call = Case(length=30, dtype=torch.float64).call(method)
    states = [call.query, call.key]
    if feature_map == "hedgehog":
        learned = call.parameters["branch.features"].double()
        states = [torch.cat([each @ learned.T, -each @ learned.T], dim=-1).softmax(-1) for each in states]
    else:
        phi = {
            "softmax": lambda x: x.softmax(-1),
            "elu": lambda x: torch.where(x > 0, x + 1, x.exp()),
            "relu": torch.relu,
        }
        states = [phi[feature_map](each) for each in states]
    query, key = states
    blocks = [slice(first, min(first + 4, 30)) for first in range(0, 30, 4)]
    pooled = [
        torch.stack([each[:, :, block].mean(2) for block in blocks], 2) for each in (call.query, call.key)
    ]
    order = (pooled[0] @ pooled[1].mT).argsort(dim=-1, descending=True, stable=True)
    place = order.argsort(dim=-1)  # 8 blocks: the first 2 are critical, the last is negligible
    marginal = (place >= 2) & (place < 7) if scope == "marginal" else torch.ones_like(place, dtype=torch.bool)
    token = torch.arange(30) // 4
    weights = (query @ key.mT) * marginal[:, :, token][..., token]
    torch.testing.assert_close(
        dispatch.attention(call)[0],
        weights @ call.value / weights.sum(-1, keepdim=True),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("feature_map", MAPS)
@pytest.mark.parametrize("combine", ["project", "alpha", "sum"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients(feature_map: str, combine: str, causal: bool) -> None:
    method = SparseLinear(0.3, 0.2, 3, feature_map, combine=combine)
    call = Case(length=8, width=4, heads=2, groups=1, batch=1, dtype=torch.float64, causal=causal).call(
        method
    )
    names = list(call.parameters)
    held = [call.parameters[name].double().requires_grad_() for name in names]
    if combine == "alpha":  # inside its bounds, where its gradient is that of a number
        held[names.index("branch.alpha")] = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    noise = torch.Generator().manual_seed(0)
    states = [
        (each.detach() + 0.01 * torch.rand(each.shape, generator=noise, dtype=each.dtype)).requires_grad_()
        for each in (call.query, call.key, call.value)
    ]

    def attend(query: Tensor, key: Tensor, value: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return dispatch.attention(replace(call, query=query, key=key, value=value, parameters=given))[0]

    # of causal attention, which differs by its mask alone, in one random direction
    assert torch.autograd.gradcheck(attend, (*states, *held), fast_mode=causal)


def test_a_row_whose_features_are_all_zero_gets_nothing() -> None:
    call = Case(length=12, dtype=torch.float64).call(SparseLinear(0.3, 0.0, 4, "relu", combine="sum"))
    with torch.no_grad():
        call.query[:, :, 5] = -1.0
    output = dispatch.attention(call)[0]
    assert output.isfinite().all()
    without = Case(length=12, dtype=torch.float64).call(Method(BlockTopK(0.7, 4, local_blocks=0)))
    with torch.no_grad():
        without.query[:, :, 5] = -1.0
    assert output[:, :, 5].equal(dispatch.attention(without)[0][:, :, 5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"critical": 0.0}, r"critical must be in \(0, 1\], got 0.0"),
        ({"critical": 1.2}, r"critical must be in \(0, 1\], got 1.2"),
        ({"critical": 0.5, "negligible": 0.6}, "at most 1 together, got 0.5 and 0.6"),
        ({"negligible": -0.1}, r"negligible must be in \[0, 1\), got -0.1"),
        ({"block_size": 0}, "block_size must be a whole number of at least 1, got 0"),
        ({"feature_map": "exp"}, "feature_map must be one of softmax, elu, relu, hedgehog, got 'exp'"),
        ({"scope": "some"}, "scope must be one of marginal, all, got 'some'"),
        ({"combine": "add"}, "combine must be one of project, alpha, sum, alone, got 'add'"),
    ],
)
def test_options_that_cannot_be(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseLinear(**given)
    spec = ":".join(["sparse_linear", *(f"{key}={value}" for key, value in given.items())])
    with pytest.raises(ValueError, match=message):
        crisp.parse(spec)


def test_it_is_written_and_read_as_one_name() -> None:
    method = SparseLinear(0.2, block_size=16, scope="all")
    assert method.name == "sparse_linear"
    assert method.spec == "sparse_linear:critical=0.2:block_size=16:scope=all"
    assert crisp.parse(method.spec) == method
    assert method.sparsity == 0.8
    assert method.with_sparsity(0.95).spec == "sparse_linear:critical=0.05:block_size=16:scope=all"
    assert crisp.parse("sparse_linear", sparsity=0.0) == Method(
        BlockTopK(0.0, local_blocks=0), branch=Linear()
    )
    other = Method(BlockTopK(0.9), branch=Linear(0.2))
    assert other.spec == "block_topk:sparsity=0.9+linear:negligible=0.2"
    assert crisp.parse(other.spec) == other
    with pytest.raises(ValueError, match="nothing can be joined to it"):
        crisp.parse("sparse_linear+topk")
    with pytest.raises(ValueError, match="sets critical twice, as sparsity is 1 - critical"):
        crisp.parse("sparse_linear:critical=0.2", sparsity=0.5)


@pytest.mark.parametrize("block_size", [4, 16])
def test_values_of_another_width_than_the_projection_are_refused(block_size: int) -> None:
    for combine in ("project", "sum"):
        call = Case(length=64, width=16).call(SparseLinear(0.3, 0.1, block_size, combine=combine))
        call = replace(call, value=call.value[..., :8])
        if combine == "sum":
            expected = dispatch.attention(call, "reference")[0]
            torch.testing.assert_close(dispatch.attention(call)[0], expected)
        else:
            with pytest.raises(ValueError, match="as wide as its model's heads, 16, got values of width 8"):
                dispatch.attention(call)


def test_marginal_blocks_need_a_layout_that_ranks() -> None:
    with pytest.raises(ValueError, match=r"needs a layout that ranks blocks, such as block_topk, got Window"):
        Method(Window(9), branch=Linear())
    whole = Method(Window(9), TopK(0.5), Linear(scope="all"))
    assert computed(whole, Case()).isfinite().all()


def test_it_is_trained_and_saved_with_a_model_and_a_schedule_begins_dense(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), SparseLinear(0.3, 0.2, block_size=2))
    at_first = logits(model)
    assert at_first.equal(logits(crisp.sparsify(distilbert(), BlockTopK(0.7, 2, local_blocks=0))))
    learned = {name: each for name, each in model.named_parameters() if "crisp_learned" in name}
    assert len(learned) == 8
    model(**BATCH, labels=torch.tensor([0, 1])).loss.backward()
    assert all(each.grad.abs().sum() > 0 for each in learned.values())
    with torch.no_grad():
        for each in learned.values():
            each.add_(0.3 * torch.randn(each.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path)
    assert not torch.allclose(logits(model), at_first)
    assert logits(crisp.load(tmp_path)).equal(logits(model))
    crisp.set_sparsity(model, 0.0)
    assert logits(model).equal(logits(distilbert()))


@pytest.mark.parametrize("heads", [None, {"0": SparseLinear(0.25, 0.25, block_size=2)}])
def test_the_shares_of_all_three_classes_are_measured(heads) -> None:
    model = distilbert()
    ids = torch.arange(2, 18)[None].repeat(2, 1)
    crisp.sparsify(model, None if heads else SparseLinear(0.25, 0.25, block_size=2), heads=heads)
    with crisp.measuring(model) as seen:
        model(ids)
    table = seen.table()
    mine = table if heads is None else table[table["head"] == 0]
    assert (mine["sparsity"] == 0.75).all()  # 2 of 8 blocks critical, 2 negligible, the others marginal
    assert (mine["branch"] == 0.5).all()
    if heads:
        assert (table[table["head"] == 1][["sparsity", "branch"]] == 0).all(axis=None)


@pytest.mark.parametrize("dense", [slice(0, 5), slice(40, 45)])
@pytest.mark.parametrize("size", [4, 16])
def test_beside_tokens_that_stay_dense_the_others_are_as_if_alone(dense: slice, size: int) -> None:
    states = {name: normal(2, 2, 45, 16, seed=seed) for seed, name in enumerate(("query", "key", "value"))}
    others = slice(5, 45) if dense.start == 0 else slice(0, 40)
    method = SparseLinear(0.2, 0.1, size, combine="sum")

    def added(backend: str, given: dict[str, Tensor], dense: slice | None) -> Tensor:
        both, sparse = (
            dispatch.attention(Call(**given, method=each, scale=0.25, dense=dense), backend)[0]
            for each in (method, Method(method.layout))
        )
        return both - sparse

    found = added("auto", states, dense)
    assert not found[:, :, dense].any()
    alone = added("reference", {name: each[:, :, others] for name, each in states.items()}, None)
    torch.testing.assert_close(found[:, :, others], alone)
