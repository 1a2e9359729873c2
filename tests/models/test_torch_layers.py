"""Torch's own attention layers, sparse: their masks, their fast paths, and cross-attention."""

import pytest
import torch
from torch import Tensor, nn

import crisp_attention as crisp
from crisp_attention import Dense, TopK, Window
from tests.models.by_hand import HEADS, LENGTH, WIDTH, nothing_is_left


def masks(kind: str) -> dict[str, Tensor | None]:
    padding = torch.arange(LENGTH) >= torch.tensor([[LENGTH], [6]])
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    minus = torch.zeros(LENGTH, LENGTH).masked_fill(later, -torch.inf)
    of_heads = torch.randn(2 * HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(2))
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "additive padding": {"key_padding_mask": torch.zeros(2, LENGTH).masked_fill(padding, -torch.inf)},
        "causal": {"attn_mask": later},
        "both": {
            "attn_mask": minus,
            "key_padding_mask": torch.zeros(2, LENGTH).masked_fill(padding, -torch.inf),
        },
        "bias of heads": {"attn_mask": of_heads},
    }[kind]


@pytest.mark.parametrize("kind", ["none", "padding", "additive padding", "causal", "both", "bias of heads"])
@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 6, "vdim": 5, "batch_first": True, "bias": False},
    ],
    ids=["batch first", "more keys", "widths"],
)
def test_multi_head_attention_is_torchs(kind: str, options: dict) -> None:
    torch.manual_seed(3)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(WIDTH, HEADS, **options)})
    states = [
        torch.randn(2, LENGTH, width)
        for width in (WIDTH, options.get("kdim", WIDTH), options.get("vdim", WIDTH))
    ]
    if not options.get("batch_first"):
        states = [each.transpose(0, 1) for each in states]
    for training, needed in ((True, True), (False, True), (False, False)):
        model.train(training)
        given = {**masks(kind), "need_weights": needed}
        for average in (True, False):
            dense = model["attention"](*states, average_attn_weights=average, **given)
            crisp.sparsify(model, Dense(), backend="reference")
            found = model["attention"](*states, average_attn_weights=average, **given)
            crisp.densify(model)
            torch.testing.assert_close(found, dense)


def test_multi_head_attention_of_one_example_and_its_sparse_weights() -> None:
    torch.manual_seed(3)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(WIDTH, HEADS)}).eval()
    states = torch.randn(LENGTH, WIDTH)
    crisp.sparsify(model, TopK(keep=2))
    output, weights = model["attention"](states, states, states, average_attn_weights=False)
    assert output.shape == (LENGTH, WIDTH)
    assert ((weights > 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(HEADS, LENGTH))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_an_encoder_of_torch_reads_padded_batches(nested: bool, training: bool) -> None:
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).train(training)
    states = torch.randn(2, LENGTH, WIDTH)
    padding = torch.arange(LENGTH) >= torch.tensor([[LENGTH], [6]])
    dense = model(states, src_key_padding_mask=padding)
    crisp.sparsify(model, TopK(0.0))
    torch.testing.assert_close(model(states, src_key_padding_mask=padding)[~padding], dense[~padding])
    crisp.sparsify(model, TopK(0.5))
    found = model(states, src_key_padding_mask=padding)
    torch.testing.assert_close(found[1, :6], model(states[1:, :6])[0])
    assert (found - dense)[~padding].abs().max() > 0.01
    crisp.densify(model)
    assert model(states, src_key_padding_mask=padding).equal(dense)
    assert model.use_nested_tensor == nested
    assert nothing_is_left(model)


def test_cross_attention_stays_dense_unless_chosen() -> None:
    torch.manual_seed(5)
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    states, memory = torch.randn(2, LENGTH, WIDTH), torch.randn(2, 5, WIDTH)
    crisp.sparsify(model, TopK(0.5))
    names = ["layers.0.self_attn", "layers.0.multihead_attn", "layers.1.self_attn", "layers.1.multihead_attn"]
    assert {row.name: row.method for row in crisp.explain(model).rows} == dict(
        zip(names, ["topk:sparsity=0.5", "dense"] * 2, strict=True)
    )
    own = model(states, memory)
    crisp.sparsify(model, TopK(0.5), attention="all")
    assert not model(states, memory).equal(own)
    with pytest.raises(ValueError, match="cross-attention does not have"):
        crisp.sparsify(model, Window(3), attention="cross")
