"""The parts that others write: they train, save, load, run on our kernels, and cost what CONTRIBUTING says."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import BlockTopK, Branch, Layout, Method, PerHead, Rule, TopK, parse
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods import part
from crisp_attention.methods.blocks import BlockGraph, Blocks
from crisp_attention.methods.part import Gold, Parameter, Part, Shape
from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.testing import LayoutContract, MethodContract, RuleContract
from tests.models.tiny import BATCH, distilbert, logits, noisy


@dataclass(frozen=True)
class Above(Rule):
    """Keep the keys whose score is at least `least`, and the row's first key."""

    least: float = 0.0

    name: ClassVar[str] = "above"

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible & ((rows.scores >= self.least) | (visible.cumsum(dim=-1) == 1))


class Odd(TopK):
    """A subclass without a name of its own."""

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible & (visible.cumsum(dim=-1) % 2 == 1)


@dataclass(frozen=True)
class Band(Layout):
    """Blocks of 16 tokens see the blocks at most `reach` away."""

    reach: int = 1

    name: ClassVar[str] = "band"
    uses_positions: ClassVar[bool] = True

    def visible(self, rows: Rows) -> Tensor:
        own, keys = (rows.query_positions - 1) // 16, (rows.key_positions - 1) // 16
        return rows.valid & ((own - keys).abs() <= self.reach)

    def blocks(self, rows: Rows) -> BlockGraph | None:
        blocks = Blocks.of(rows, 16)
        if blocks is None:
            return None
        place = torch.arange(blocks.count, device=rows.query.device)
        return BlockGraph.of(rows, blocks, (place[:, None] - place).abs() <= self.reach)


@dataclass(frozen=True)
class Derived(BlockTopK):
    """A block layout that shows all: what it derives from says nothing about it."""

    name: ClassVar[str] = "derived"

    def visible(self, rows: Rows) -> Tensor:
        return rows.valid


@dataclass(frozen=True)
class Learnt(Layout):
    """Every head looks at most `reach` tokens away, by a trained width that starts at `reach`: a soft edge cannot be
    had from a mask, so the width is only read."""

    reach: float = 2.0

    name: ClassVar[str] = "learnt"
    uses_positions: ClassVar[bool] = True

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return {"reach": Parameter(torch.full((shape.heads,), self.reach))}

    def visible(self, rows: Rows) -> Tensor:
        reach = self.parameter(rows, "reach")[:, None, None]
        return rows.valid & ((rows.key_positions - rows.query_positions).abs() <= reach)


@dataclass(frozen=True)
class Nearest(Layout):
    """Keys of the group of the query: the nearest of centres that were fitted to keys, one set for each key head."""

    groups: int = 2

    name: ClassVar[str] = "nearest"

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        centres = torch.zeros(shape.groups, self.groups, shape.width)
        return {"centres": Parameter(centres, trained=False, per_head=False)}

    def fitter(self, shape: Shape, gold: Gold, seed: int = 0) -> "FirstKeys":
        return FirstKeys(self.groups)

    def visible(self, rows: Rows) -> Tensor:
        centres = self.parameter(rows, "centres")
        shared = rows.query.shape[1] // rows.key.shape[1]
        nearest = [
            torch.cdist(each.float(), centres).argmin(-1) for each in (rows.query[:, ::shared], rows.key)
        ]
        own, keys = (each.repeat_interleave(shared, dim=1) for each in nearest)
        return rows.valid & ((own[..., :, None] == keys[..., None, :]) | (rows.key_positions == 1))


class FirstKeys:
    """Centres: the first keys that it is shown."""

    def __init__(self, groups: int) -> None:
        self.groups, self.found = groups, None

    def see(self, rows: Rows) -> None:
        self.found = rows.key[0, :, : self.groups].float() if self.found is None else self.found

    def values(self) -> dict[str, Tensor]:
        return {"centres": self.found}


@dataclass(frozen=True)
class MeanOfTheRest(Branch):
    """The mean value of the real tokens in the blocks that were not seen, times a trained number for each head."""

    name: ClassVar[str] = "mean_of_the_rest"

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return {"share": Parameter(torch.full((shape.heads,), 0.5))}

    def attention(self, call, output) -> Tensor:
        if call.blocks is None:  # single queries choose
            return call.query.new_zeros(*call.query.shape[:3], call.value.shape[3])
        shared = call.query.shape[1] // call.key.shape[1]
        rest = (call.rows.valid & ~call.blocks.pairs(call.rows)).to(call.value.dtype)
        means = rest @ call.value.repeat_interleave(shared, dim=1) / rest.sum(-1, keepdim=True).clamp(min=1)
        return means.float() * self.parameter(call, "share")[:, None, None]


def test_a_rule_of_another_file_trains_saves_and_loads(tmp_path) -> None:
    assert parse("above:least=0.1") == Method(rule=Above(0.1))
    model = crisp.sparsify(distilbert(), Above(0.1))
    assert not logits(model).equal(logits(distilbert()))
    model(**BATCH, labels=torch.tensor([0, 1])).loss.backward()
    assert all(each.grad is not None for each in model.parameters())
    model.save_pretrained(tmp_path)
    assert logits(crisp.load(tmp_path)).equal(logits(model))


def test_loading_without_the_class_names_what_to_import(tmp_path, monkeypatch) -> None:
    crisp.sparsify(distilbert(), Above(0.1)).save_pretrained(tmp_path)
    monkeypatch.delitem(part._parts, "above")
    with pytest.raises(
        ValueError, match=r"unknown name 'above'; first import the class Above from the module .*test_seams"
    ):
        crisp.load(tmp_path)


def test_a_subclass_without_a_name_works_and_is_asked_for_one_when_it_is_saved(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), Odd(0.5))
    assert {row.kernel for row in crisp.explain(model).rows} == {"reference"}
    assert not logits(model).equal(logits(crisp.sparsify(distilbert(), TopK(0.5))))
    with pytest.raises(ValueError, match=r"cannot be saved: .*Odd has no name of its own.* name: ClassVar"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Odd has no name of its own"):
        _ = Method(rule=Odd(0.5)).spec
    with pytest.raises(ValueError, match=r"'cpu' cannot compute this call .* the rule Odd"):
        logits(crisp.sparsify(model, Odd(0.5), backend="cpu"))


def test_one_name_is_one_class_and_a_class_that_is_defined_again_replaces_the_first() -> None:
    def cell() -> type[Part]:
        class Cell(TopK):
            name: ClassVar[str] = "cell"

        return Cell

    first, second = cell(), cell()
    assert type(parse("cell").rule) is second is not first
    for name in ("cell", "topk", "window"):
        with pytest.raises(ValueError, match=rf"the name '{name}' belongs to .*; choose another"):
            type("Other", (TopK,), {"name": name})
    with pytest.raises(ValueError, match="must be a word of letters"):
        type("Other", (TopK,), {"name": "a+b"})


def call(method: Method, **more) -> Call:
    """64 tokens, four heads of which two share a key head."""
    draw = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, heads, 64, 32, generator=draw) for heads in (4, 2, 2))
    return Call(query, key, value, method, scale=32**-0.5, **more)


PADDED = (torch.arange(64) < torch.tensor([[64], [41]]))[:, None, None]


@pytest.mark.parametrize("valid", [None, PADDED.expand(-1, -1, 64, -1)], ids=["whole", "padded"])
@pytest.mark.parametrize("rule", [TopK(0.0), TopK(0.5)], ids=str)
def test_a_layout_of_blocks_runs_on_the_kernel_for_blocks(valid, rule) -> None:
    given = call(Method(Band(), rule), valid=valid)
    assert [each.kernel for each in dispatch.plan(given)] == ["cpu"]
    output, weights = dispatch.attention(given, "reference", weights=True)
    real = torch.ones(2, 1, 64, 1) if valid is None else PADDED.transpose(2, 3)
    torch.testing.assert_close(dispatch.attention(given)[0] * real, output * real, atol=1e-5, rtol=1e-5)
    place = torch.arange(64) // 16
    assert not (weights * real)[..., (place[:, None] - place).abs() > 1].any()


def test_a_layout_of_blocks_decides_on_pairs_where_single_queries_see_different_keys() -> None:
    assert "block choices for single queries" in dispatch.lacks("cpu", call(Method(Band()), causal=True))
    assert dispatch.lacks("cpu", call(Method(Derived(0.5, block_size=16)))) == "the layout derived"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", [Band(), BlockTopK(0.5, block_size=16)], ids=str)
def test_a_branch_is_added_to_what_any_kernel_gives(backend, layout) -> None:
    share = torch.tensor([0.0, 0.5, 1.0, 2.0], requires_grad=True)
    given = call(Method(layout, TopK(0.5), MeanOfTheRest()), parameters={"branch.share": share})
    plain = call(Method(layout, TopK(0.5)))
    output, without = dispatch.attention(given, backend)[0], dispatch.attention(plain, backend)[0]
    seen = layout.blocks(given.rows).pairs(given.rows)
    for head, key_head in enumerate((0, 0, 1, 1)):
        rest = (~seen[:, head]).float()
        means = rest @ given.value[:, key_head] / rest.sum(-1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(output[:, head], without[:, head] + share[head] * means)
    output.square().sum().backward()
    assert (share.grad != 0).all()
    observed = dispatch.attention(given, backend, observe=lambda seen: None)[0]
    torch.testing.assert_close(observed, output, atol=1e-5, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"has a branch, .* no attention weights to return \(output_attentions=True"
    ):
        dispatch.attention(given, backend, weights=True)


def test_heads_have_branches_of_their_own() -> None:
    blocks, share = BlockTopK(0.5, block_size=16), torch.tensor([0.0, 0.5, 1.0, 2.0])
    with_it, without = Method(blocks, TopK(0.5), MeanOfTheRest()), Method(blocks, TopK(0.5))
    heads = call(PerHead((with_it, without, with_it, Method())), parameters={"branch.share": share})
    for observe in (None, lambda seen: None):
        output = dispatch.attention(heads, observe=observe)[0]
        for head, method in enumerate(heads.method.methods):
            alone = dispatch.attention(call(method, parameters={"branch.share": share}))[0]
            torch.testing.assert_close(output[:, head], alone[:, head], atol=1e-5, rtol=1e-5)


def test_a_model_trains_saves_and_loads_a_branch(tmp_path) -> None:
    method = Method(BlockTopK(0.5, block_size=2), TopK(0.5), MeanOfTheRest())
    assert parse(method.spec) == method == Method.from_dict(method.to_dict())
    assert Method.from_dict({k: v for k, v in method.to_dict().items() if k != "branch"}).branch is None
    model = crisp.sparsify(distilbert(), method)
    model(**BATCH, labels=torch.tensor([0, 1])).loss.backward()
    learnt = {
        name: each for name, each in model.named_parameters() if name.endswith("crisp_learned.branch.share")
    }
    assert len(learnt) == 4
    assert all((each.grad != 0).any() for each in learnt.values())
    with torch.no_grad():
        for each in learnt.values():
            each.add_(torch.rand(each.shape))
    model.save_pretrained(tmp_path)
    assert logits(crisp.load(tmp_path)).equal(logits(model))
    with pytest.raises(ValueError, match="has a branch"):
        model(**BATCH, output_attentions=True)


def test_a_layout_may_have_trained_parameters(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), Learnt())
    names = [name for name, _ in model.named_parameters() if "crisp_learned" in name]
    assert names == [
        f"distilbert.transformer.layer.{n}.attention.crisp_learned.layout.reach" for n in range(4)
    ]
    before = logits(model)
    with torch.no_grad():
        dict(model.named_parameters())[names[0]].fill_(0.0)
    assert not logits(model).equal(before)
    model.save_pretrained(tmp_path)
    assert logits(crisp.load(tmp_path)).equal(logits(model))


def test_a_layout_may_have_fitted_parameters(tmp_path) -> None:
    model = crisp.sparsify(noisy(distilbert()), Nearest())
    with pytest.raises(
        ValueError, match=r"'nearest' needs the parameter 'centres', .* call crisp\.fit\(model"
    ):
        logits(model)
    crisp.fit(model, [BATCH])
    fitted = logits(model)
    assert not fitted.equal(logits(noisy(distilbert())))
    assert not [name for name, _ in model.named_parameters() if "centres" in name]
    model.save_pretrained(tmp_path)
    assert logits(crisp.load(tmp_path)).equal(fitted)
    given = call(Method(Nearest()), parameters={"layout.centres": call(Method()).key[0, :, :2]})
    _, weights = dispatch.attention(given, weights=True)
    assert (weights > 0).equal(Nearest().visible(given.rows))
    assert 0 < (weights > 0).float().mean() < 1


class TestAbove(RuleContract):
    rule = Above(0.1)


@dataclass(frozen=True)
class OverTheMean(Rule):
    """Wrong: the mean is that of all scores, those of padding and of later tokens too."""

    name: ClassVar[str] = "over_the_mean"

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible & (rows.scores >= rows.scores.mean(dim=-1, keepdim=True))


@dataclass(frozen=True)
class HalfTheLength(Rule):
    """Wrong: k is a share of the padded length."""

    name: ClassVar[str] = "half_the_length"

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        seen = visible.sum(dim=-1, keepdim=True)
        return keep_largest(rows.scores, visible, seen.clamp(max=visible.shape[-1] // 2 + 1))


@dataclass(frozen=True)
class Everything(Rule):
    """Wrong: what is not visible is kept as well."""

    name: ClassVar[str] = "everything"

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return torch.ones_like(rows.scores, dtype=torch.bool)


@dataclass(frozen=True)
class Doubled(Rule):
    """Wrong: says that it is dense, and is not."""

    name: ClassVar[str] = "doubled"

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible

    def weigh(self, rows: Rows, keep: Tensor) -> Tensor:
        return 2 * super().weigh(rows, keep)

    def drops_nothing(self, keys: int | None = None) -> bool:
        return True


PADDING, FUTURE, ONE = "padded_batch", "later_tokens", "a_token_at_a_time"


@pytest.mark.parametrize(
    ("rule", "fails"),
    [
        (OverTheMean(), {PADDING, FUTURE, ONE}),
        (HalfTheLength(), {PADDING, FUTURE}),
        (Everything(), {PADDING, FUTURE, "subset_of_what_is_visible"}),
        (Doubled(), {"drops_nothing"}),
        (Odd(0.5), {"json_and_its_spec"}),
        (Above(0.1), set()),
    ],
    ids=lambda given: type(given).__name__,
)
def test_the_contract_tells_a_wrong_rule_from_a_right_one(rule, fails) -> None:
    contract, found = RuleContract(), set()
    for name in dir(contract):
        if name.startswith("test_") and not any(slow in name for slow in ("compiles", "gradients")):
            try:
                getattr(contract, name)(Method(rule=rule))
            except (AssertionError, ValueError):
                found.add(name)
    assert all(any(words in name for name in found) for words in fails), found
    assert fails or not found


class TestBand(LayoutContract):
    layout = Band()


class TestBranch(MethodContract):
    method = Method(BlockTopK(0.5, block_size=16), TopK(0.5), MeanOfTheRest())
