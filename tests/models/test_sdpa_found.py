"""Which modules count as attention and as cross-attention: by their code, their names, and a pass."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as attend

import crisp_attention as crisp
from crisp_attention import TopK
from crisp_attention.models.sparse_model import SparseModel
from tests.models.by_hand import IDS, WIDTH, Attention, built, nothing_is_left

STATES = torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(0))


class One(nn.Module):
    """One head, its function under another name; keys of a context, or pooled, if there is any."""

    num_heads = 1

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.pooled = pooled

    def forward(self, states: Tensor, context: Tensor | None = None) -> Tensor:
        others = states if context is None else context
        others = others[:, ::2] if self.pooled else others
        return attend(self.to_q(states)[:, None], self.to_k(others)[:, None], self.to_v(others)[:, None])[
            :, 0
        ]


class Derived(Attention):
    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        return 2 * super().forward(states, mask)


def helper(states: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(states, states, states)


class Helped(nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return helper(states)


class Net(nn.Module):
    """Named modules one after another; those called `context` get one of another length."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, states: Tensor, context: Tensor | None = None) -> Tensor:
        for part in self.children():
            states = states + (part(states) if context is None else part(states, context))
        return states


@pytest.mark.parametrize("part", [One(), Derived(), Helped()])
def test_a_call_under_another_name_of_a_base_class_or_of_a_helper_counts(part: nn.Module) -> None:
    model = Net(part=part).eval()
    dense = model(STATES)
    crisp.sparsify(model, TopK(0.7))
    assert not torch.allclose(model(STATES), dense)
    assert crisp.densify(model)(STATES).equal(dense)


@pytest.mark.parametrize(
    ("name", "cross"),
    [
        *(
            (name, True)
            for name in ("cross_attn", "xattn", "src_attn", "encoder_attn", "context_attention", "attn2")
        ),
        *((name, False) for name in ("self_attn", "attn1", "attn", "attention", "block_attn")),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_names_tell_cross_attention(name: str, cross: bool, wrapped: bool) -> None:
    part = nn.ModuleDict({"fn": One()}) if wrapped else One()
    (found,) = crisp.attention_modules(Net(**{name: part}))
    assert found.cross == cross


def test_detrs_decoder_has_one_of_each() -> None:
    layer = Net(self_attn=nn.MultiheadAttention(WIDTH, 2), multihead_attn=nn.MultiheadAttention(WIDTH, 2))
    assert [each.cross for each in crisp.attention_modules(layer)] == [False, True]


def test_a_pass_tells_cross_attention_where_names_do_not_but_a_cache_is_no_other_token() -> None:
    context = torch.randn(2, 12, WIDTH)
    model = Net(first=One()).eval()
    with pytest.raises(ValueError, match="the model has no self-attention"):
        crisp.sparsify(model, TopK(0.5), inputs=(STATES, context))
    assert nothing_is_left(model)

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("past", torch.randn(1, 2, 32, WIDTH // 2))

        def forward(self, states: Tensor) -> Tensor:
            query = states.unflatten(-1, (2, -1)).transpose(1, 2)
            past = self.past.expand(len(states), -1, -1, -1)
            return attend(query, past, past).transpose(1, 2).flatten(2)

    (found,) = crisp.attention_modules(Net(part=Cached()), STATES)
    assert (found.cross, found.queries, found.keys) == (False, 8, 32)


def test_a_module_that_only_attends_to_other_tokens_is_not_dense_in_silence() -> None:
    model = crisp.sparsify(Net(part=One(pooled=True)), TopK(0.5))
    with pytest.raises(
        RuntimeError, match=r"part: One attended to other tokens .* attention='cross' or 'all' and"
    ):
        model(STATES)
    dense = crisp.densify(model)(STATES)
    with crisp.measuring(model):  # of a dense model it is not asked
        assert model(STATES).equal(dense)
    crisp.sparsify(model, TopK(0.5), attention="all", inputs=STATES)
    assert not torch.allclose(model(STATES), dense)


def test_a_pass_can_be_repeated_on_a_sparse_model_and_leaves_nothing_after_an_error() -> None:
    model = crisp.sparsify(built(), TopK(0.5), inputs=IDS)
    assert {each.keys for each in crisp.attention_modules(model, IDS)} == {IDS.shape[1]}
    crisp.sparsify(model, TopK(0.9), inputs=IDS)
    assert set(SparseModel.of(model).sparsity.values()) == {0.9}
    crisp.densify(model)
    with pytest.raises(ValueError, match="no layer matched 'nope'"):
        crisp.sparsify(model, TopK(0.5), layers=["nope"], inputs=IDS)
    assert nothing_is_left(model)


def test_a_block_that_a_pass_found_may_have_attention_in_it_and_all_of_it_is_dense_again() -> None:
    class Block(nn.Module):
        def __init__(self, function) -> None:
            super().__init__()
            self.cross_attn, self.function = One(), [function]

        def forward(self, states: Tensor, context: Tensor) -> Tensor:
            return self.function[0](states, states, states) + self.cross_attn(states, context)

    model, context = Net(first=Block(attend), second=Block(attend)).eval(), torch.randn(2, 12, WIDTH)
    dense = model(STATES, context)
    listed = [(each.name, each.cross) for each in crisp.attention_modules(model, STATES, context)]
    assert listed == [
        ("first", False),
        ("first.cross_attn", True),
        ("second", False),
        ("second.cross_attn", True),
    ]
    crisp.sparsify(model, TopK(0.5), attention="all", inputs=(STATES, context))
    with crisp.measuring(model) as seen:
        model(STATES, context)
    assert len(seen.table()["name"].unique()) == 4
    crisp.sparsify(model, TopK(0.5), attention="cross", inputs=(STATES, context))
    assert list(SparseModel.of(model).methods) == ["first.cross_attn", "second.cross_attn"]
    assert crisp.densify(model)(STATES, context).equal(dense)
    assert nothing_is_left(model)


def test_a_module_that_is_in_two_places_is_one_layer() -> None:
    shared = Attention()
    model = Net(one=shared, two=shared).eval()
    dense = model(STATES)
    assert len(crisp.attention_modules(model)) == 1
    crisp.sparsify(model, layers={0: TopK(0.7)})
    assert not torch.allclose(model(STATES), dense)
    assert crisp.densify(model)(STATES).equal(dense)
    with crisp.measuring(model) as seen:
        model(STATES)
    assert set(seen.table()["name"]) == {"one"}
    assert nothing_is_left(model)


def test_what_is_no_module_and_what_does_not_say_its_heads() -> None:
    class Pipeline:
        components = {"transformer": built(), "scheduler": None}  # noqa: RUF012

    with pytest.raises(
        TypeError, match=r"expected a torch.nn.Module, got Pipeline; its parts are: transformer"
    ):
        crisp.sparsify(Pipeline(), TopK(0.5), inputs=IDS)
    assert not crisp.is_sparse(nn.Linear(2, 2))
    model = crisp.sparsify(Net(part=Helped()), TopK(0.5))
    (row,) = crisp.explain(model).rows
    assert row.why.startswith(
        "not known: Helped does not say how many heads it has; give crisp.sparsify inputs="
    )
