"""Any model that calls torch's attention: written by hand, of torch's own layers, and what must not leak out of it."""

import copy
import importlib
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import crisp_attention as crisp
from crisp_attention import Dense, Entmax, TopK
from crisp_attention.models.sdpa.mode import Attending
from tests.models.by_hand import GPT, HEADS, IDS, LENGTH, WIDTH, Attention, Hidden, built, nothing_is_left


def by_hand(model: GPT, ids: Tensor, keep: int) -> Tensor:
    """The decoder with top-k attention, written again."""
    states = model.tokens(ids) + model.places.weight[: ids.shape[1]]
    for block in model.blocks:
        attention, inner = block.attention, block.norms[0](states)
        parts = attention.qkv(inner).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-2, -3)
        scores = parts[0] @ parts[1].mT / parts[0].shape[-1] ** 0.5
        causal = torch.ones_like(scores, dtype=torch.bool).tril()
        scores = scores.masked_fill(~causal, -torch.inf)
        least = scores.topk(keep, dim=-1).values[..., -1:]
        weights = scores.masked_fill(scores < least, -torch.inf).softmax(dim=-1)
        states = states + attention.out((weights @ parts[2]).transpose(1, 2).flatten(2))
        states = states + block.mlp(block.norms[1](states))
    return model.head(states)


def test_a_decoder_is_made_sparse_and_dense_again() -> None:
    model, dense = built(), built()(IDS)
    crisp.sparsify(model, TopK(keep=3))
    torch.testing.assert_close(model(IDS), by_hand(built(), IDS, keep=3))
    assert [row.name for row in crisp.explain(model).rows] == [f"blocks.{i}.attention" for i in range(3)]
    with crisp.measuring(model) as seen:
        model(IDS)
    wanted = 1 - (1 + 2 + 3 * (LENGTH - 2)) / (LENGTH * (LENGTH + 1) / 2)
    assert seen.table()["sparsity"].tolist() == pytest.approx([wanted] * 6)
    crisp.densify(model)
    assert model(IDS).equal(dense)
    assert nothing_is_left(model)


def test_what_drops_nothing_is_torchs_own_bit_for_bit_and_what_is_asked_for_by_name_is_computed() -> None:
    model, dense = built(), built()(IDS)
    assert crisp.sparsify(model, TopK(0.0))(IDS).equal(dense)
    crisp.sparsify(model, Dense(), backend="reference")
    assert not model(IDS).equal(dense)
    torch.testing.assert_close(model(IDS), dense)


def test_layers_are_chosen_and_set_as_in_any_model() -> None:
    model, dense = built(), built()(IDS)
    crisp.sparsify(model, layers={"blocks.*": TopK(0.5), "0": Dense()})
    before = model(IDS)
    assert not before.equal(dense)
    crisp.set_sparsity(model, 0.0)
    assert model(IDS).equal(dense)
    with pytest.raises(ValueError, match=r"no layer matched 'mlp'; the layers are: 0 blocks\.0\.attention"):
        crisp.sparsify(model, TopK(0.5), layers=["mlp"])


@pytest.mark.parametrize("padding", [1, 7])
@pytest.mark.parametrize("additive", [False, True])
def test_padding_and_batch_mates_change_nothing(padding: int, additive: bool) -> None:
    model = crisp.sparsify(built(causal=False), TopK(0.6))
    alone = model(IDS[:1])
    ids = torch.cat([IDS, IDS[:, :padding]], dim=1)
    real = torch.arange(LENGTH + padding) < torch.tensor([[LENGTH], [LENGTH + padding]])
    mask = real[:, None, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.testing.assert_close(model(ids, mask)[:1, :LENGTH], alone, rtol=0, atol=1e-5)


def test_training_is_the_same_under_checkpointing_and_autocast_runs() -> None:
    model = crisp.sparsify(built(), Entmax("learned")).train()
    model(IDS).square().mean().backward()
    plain = {name: each.grad.clone() for name, each in model.named_parameters()}
    assert sum("crisp_learned" in name for name in plain) == 3
    model.zero_grad()
    hidden = model.tokens(IDS) + model.places.weight[:LENGTH]
    for block in model.blocks:
        hidden = torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False)
    model.head(hidden).square().mean().backward()
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, plain[name], msg=name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(IDS).isfinite().all()


def test_compiled_into_one_graph_it_is_sparse_there_too() -> None:
    model = crisp.sparsify(built(), TopK(0.6))
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(IDS), model(IDS))
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not [name for name in called if "scaled_dot_product_attention" in name]
    assert not model(IDS).equal(built()(IDS))


def test_an_exception_leaves_no_mode_behind_and_is_not_hidden() -> None:
    model = crisp.sparsify(built(), TopK(0.5))
    with pytest.raises(RuntimeError, match=r"size of tensor|must match|shape"):
        model(IDS, torch.ones(2, 1, 1, LENGTH + 5, dtype=torch.bool))
    assert not isinstance(torch.overrides._get_current_function_mode(), Attending)
    assert model(IDS).isfinite().all()


def test_a_module_that_never_calls_torchs_attention_is_named() -> None:
    model = crisp.sparsify(built(), TopK(0.5))
    model.blocks[1].attention.forward = lambda states, mask: states
    with pytest.raises(
        RuntimeError, match=r"blocks\.1\.attention: Attention did not call torch's scaled_dot"
    ):
        model(IDS)
    assert not isinstance(torch.overrides._get_current_function_mode(), Attending)


def test_a_module_that_is_all_attention_is_a_model_too() -> None:
    torch.manual_seed(0)
    model, states = Attention().eval(), torch.randn(2, LENGTH, WIDTH)
    dense = model(states)
    assert not crisp.sparsify(model, TopK(0.5))(states).equal(dense)
    assert crisp.densify(model)(states).equal(dense)
    assert nothing_is_left(model)


def test_another_model_of_the_class_and_copies_are_their_own() -> None:
    model, other, dense = built(), built(), built()(IDS)
    crisp.sparsify(model, TopK(0.5))
    sparse = model(IDS)
    assert other(IDS).equal(dense)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    crisp.densify(model)
    for twin in twins:
        assert twin(IDS).equal(sparse)
        crisp.densify(twin)
        assert twin(IDS).equal(dense)
        assert nothing_is_left(twin)


def test_threads_run_a_sparse_and_a_dense_model_at_once() -> None:
    dense, sparse = built(), crisp.sparsify(built(), TopK(0.5))
    wanted = {"dense": dense(IDS), "sparse": sparse(IDS), "again": sparse(IDS)}
    wrong = []

    def run(name: str, model: nn.Module) -> None:
        with torch.no_grad():
            wrong.extend(name for _ in range(40) if not torch.allclose(model(IDS), wanted[name], atol=1e-6))

    threads = [
        threading.Thread(target=run, args=each)
        for each in (("dense", dense), ("sparse", sparse), ("again", sparse))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class PatchAttention(nn.Module):
    """As timm writes it."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused_attn = num_heads, width // num_heads, True
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.attn_drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        dropout = self.attn_drop.p if self.training else 0.0
        x = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.proj(x.transpose(1, 2).reshape(batch, count, width))


class ViT(nn.Module):
    """A small vision transformer: patches, a class token, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "attn": PatchAttention(WIDTH, HEADS)})
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        states = self.patches(images).flatten(2).transpose(1, 2)
        states = torch.cat([self.token.expand(len(states), -1, -1), states], dim=1)
        for block in self.blocks:
            states = states + block["attn"](block["norm"](states))
        return self.head(states[:, 0])


def images_are_read_sparsely(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        dense = model.eval()(images)
        crisp.sparsify(model, TopK(0.0))
        assert model(images).equal(dense)
        crisp.sparsify(model, TopK(0.7))
        both = model(images)
        assert not torch.allclose(both, dense, atol=1e-4)
        torch.testing.assert_close(model(images[:1]), both[:1], rtol=1e-4, atol=1e-4)
    model.train()(images).square().mean().backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())
    crisp.densify(model.eval())
    with torch.no_grad():
        assert model(images).equal(dense)


def test_a_vision_transformer_as_timm_writes_them() -> None:
    torch.manual_seed(0)
    model = ViT()
    for block in model.blocks:
        nn.init.normal_(block["attn"].qkv.weight, std=0.5)
    images_are_read_sparsely(model, torch.randn(2, 1, 20, 20))
    assert [each.width for each in crisp.attention_modules(model)] == [WIDTH // HEADS] * 2


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_vision_transformers_of_libraries(library: str) -> None:
    try:  # beside another torch than theirs, torchvision raises RuntimeError
        module = importlib.import_module(library if library == "timm" else "torchvision.models")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{library} cannot be imported: {error}")
    torch.manual_seed(0)
    if library == "timm":
        model = module.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10)
    else:
        model = module.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)
    images_are_read_sparsely(model, torch.randn(2, 3, 32, 32))


def test_wrappers_are_looked_into() -> None:
    model = crisp.sparsify(built(), TopK(0.5))
    wrapped = nn.DataParallel(model)
    assert crisp.is_sparse(wrapped)
    crisp.set_sparsity(wrapped, 0.0)
    assert model(IDS).equal(built()(IDS))
    crisp.set_sparsity(model, 0.5)
    replica = model._replicate_for_data_parallel()
    assert replica(IDS).equal(model(IDS))
    crisp.densify(torch.compile(model, backend="eager"))
    assert nothing_is_left(model)


# --- what its code does not show


def test_a_pass_finds_what_the_code_does_not_name() -> None:
    torch.manual_seed(6)
    model = nn.Sequential(Hidden(functional.scaled_dot_product_attention), nn.Dropout(0.5)).train()
    states = torch.randn(2, LENGTH, WIDTH)
    with pytest.raises(
        TypeError, match=r"Sequential holds none that its code shows; with inputs= crisp\.sparsify"
    ):
        crisp.sparsify(model, TopK(0.5))
    listed = crisp.attention_modules(model, states)
    assert [(each.name, each.kind, each.heads, each.width, each.queries) for each in listed] == [
        ("0", "Hidden", HEADS, WIDTH // HEADS, LENGTH)
    ]
    assert nothing_is_left(model)
    crisp.sparsify(model, Entmax("learned"), inputs=(states,))
    assert model[1].training
    assert [row.name for row in crisp.explain(model).rows] == ["0"]
    assert model[0].crisp_learned.rule.alpha.shape == (HEADS,)
    with pytest.raises(ValueError, match="Sequential called no attention function of torch"):
        crisp.sparsify(nn.Sequential(nn.Linear(WIDTH, WIDTH)), TopK(0.5), inputs=states)
