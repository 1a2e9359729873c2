"""`crisp.explain` says what the forward pass then does."""

import pytest
import torch

import crisp_attention as crisp
from crisp_attention import LSH, BlockTopK, Entmax, Method, RandomK, TopK, Window
from crisp_attention.kernels import dispatch, registry, replay
from tests.contract.families import available
from tests.contract.test_families import run
from tests.models.tiny import distilbert, layers_of


@pytest.mark.parametrize("family", available(), ids=lambda family: family.name)
def test_it_says_which_kernel_the_forward_pass_takes(family, monkeypatch) -> None:
    model = crisp.sparsify(family.build(), TopK(0.5))
    planned: list[tuple] = []
    plan = dispatch.plan

    def spy(call, backend):
        parts = plan(call, backend)
        planned.extend((part.kernel, *call.query.shape[1::2], call.key.shape[1]) for part in parts)
        return parts

    monkeypatch.setattr(dispatch, "plan", spy)
    monkeypatch.setattr(replay, "find", lambda kind: None)  # calls like an earlier one are not planned
    rows = crisp.explain(model, length=9).rows
    said, planned = planned, []
    run(family, model, lengths=(9,))
    assert [row.layer for row in rows] == [layer.index for layer in layers_of(model)]
    assert [row.kernel for row in rows if row.kernel is not None] == [kernel for kernel, *_ in said]
    assert planned == said * (len(planned) // len(said))  # ALBERT calls its one module again and again


def test_it_reads_well() -> None:
    model = crisp.sparsify(distilbert(), layers={"1-3": TopK(0.5), "2": RandomK(0.5)}, backend="reference")
    assert str(crisp.explain(model, batch=2, length=64)).splitlines()[:6] == [
        "DistilBertForSequenceClassification in evaluation: 2 x 64 tokens, float32, cpu "
        "(padding, biases and outputs that a forward pass asks for are not considered)",
        "layer 0 (distilbert.transformer.layer.0.attention)",
        "  dense -> the model's own attention: it is dense; it runs sdpa",
        "layer 1 (distilbert.transformer.layer.1.attention)",
        "  topk:sparsity=0.5 -> kernel reference: backend='reference' was asked for",
        "    not cpu: supported, but ranked lower",
    ]


def test_equal_layers_are_told_once_and_heads_apart() -> None:
    model = crisp.sparsify(distilbert(), heads={"0": Window(3), "1": Entmax()}, backend="reference")
    lines = str(crisp.explain(model)).splitlines()
    assert lines[1] == "layers 0-3"
    assert len(crisp.explain(model).rows) == 4
    model = crisp.sparsify(distilbert(), heads={"0": Window(3), "1": TopK(0.5)})
    assert [row.heads for row in crisp.explain(model).rows][:2] == [(0,), (1,)]


def test_what_will_fail_is_said() -> None:
    model = crisp.sparsify(distilbert(), Method(LSH(), Entmax(1.3)), backend="cpu")
    assert all(row.why.startswith("it will fail: backend 'cpu'") for row in crisp.explain(model).rows)
    with pytest.raises(ValueError, match="it lacks the rule entmax on the layout lsh"):
        model(torch.arange(5)[None])


def test_a_phase_and_learned_parameters_are_seen() -> None:
    model = crisp.sparsify(distilbert(), Entmax("learned"), phase="train")
    assert {row.kernel for row in crisp.explain(model).rows} == {None}
    assert None not in {row.kernel for row in crisp.explain(model, training=True).rows}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_of_a_dense_model_it_says_what_its_own_attention_runs(implementation) -> None:
    model = distilbert()
    model.set_attn_implementation(implementation)
    assert str(crisp.explain(model)).splitlines()[1:] == [
        "layers 0-3",
        f"  dense -> the model's own attention: the model is dense; it runs {implementation}",
    ]
    assert not crisp.is_sparse(model)


def test_it_wants_whole_numbers() -> None:
    with pytest.raises(ValueError, match="length must be a whole number of at least 1, got 0"):
        crisp.explain(crisp.sparsify(distilbert(), TopK(0.5)), length=0)


def test_a_backend_stays_with_the_machine(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), TopK(0.5), backend="reference")
    crisp.set_sparsity(model, 0.8)
    assert {row.why for row in crisp.explain(model).rows} == {"backend='reference' was asked for"}
    model.save_pretrained(tmp_path)
    assert "backend" not in (tmp_path / "config.json").read_text()
    assert {row.kernel for row in crisp.explain(crisp.load(tmp_path, backend="reference")).rows} == {
        "reference"
    }
    with pytest.raises(ValueError, match="backend must be one of auto"):
        crisp.sparsify(model, TopK(0.5), backend="fast")


def test_training_wants_dropout_and_gradients() -> None:
    model = crisp.sparsify(distilbert(), BlockTopK(0.5, block_size=16), backend="flex")
    assert {row.why for row in crisp.explain(model).rows} == {"backend='flex' was asked for"}
    assert all("it lacks dropout" in row.why for row in crisp.explain(model, training=True).rows)
    for layer in layers_of(model):
        layer.module.dropout.p = 0.0
    assert all("it lacks gradients" in row.why for row in crisp.explain(model, training=True).rows)


@pytest.mark.parametrize("family", available(), ids=lambda family: family.name)
def test_training_has_the_dropout_of_the_model(family, monkeypatch) -> None:
    model = crisp.sparsify(family.build(), TopK(0.5))
    for module in model.modules():  # tiny models come with other shares, most of them 0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.25)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.25
    planned: list[float] = []
    plan = dispatch.plan

    def spy(call, backend):
        planned.append(call.dropout)
        return plan(call, backend)

    monkeypatch.setattr(dispatch, "plan", spy)
    monkeypatch.setattr(replay, "find", lambda kind: None)  # calls like an earlier one are not planned
    for training in (False, True):
        model.train(training)
        planned.clear()
        crisp.explain(model, length=9, training=training)
        said = set(planned)
        planned.clear()
        run(family, model, lengths=(9,))
        assert said == set(planned)


def test_it_says_whether_that_was_measured(monkeypatch) -> None:
    model = crisp.sparsify(distilbert(), TopK(0.5))
    assert {row.why for row in crisp.explain(model).rows} == {
        "it lacks nothing and is the fastest on 2 cores of an AMD EPYC (docs/performance.md)"
    }
    monkeypatch.setattr(registry, "FASTEST", (registry.Fastest("cpu", device="cpu"),))
    assert {row.why for row in crisp.explain(model).rows} == {
        "it lacks nothing and is expected to be the fastest on cpu, but not measured"
    }
    assert not any(row.measured for row in registry.FASTEST if row.device == "cuda")
