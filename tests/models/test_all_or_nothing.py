"""Whatever fails, and wherever: the model is exactly what it was before."""

import sys
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Entmax, TopK
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.notice import restoring
from crisp_attention.models.settings import ATTRIBUTE
from crisp_attention.models.transformers.configs import config_of
from tests.models.tiny import bart, distilbert, logits, noisy

HOUSE = str(Path(crisp.__file__).parent / "models")
ITSELF = str(Path(HOUSE) / "rollback.py")


class InjectedError(Exception):
    """Raised by the test in place of a function's work."""


def state(model):
    """Which objects the modules, configurations and settings of a model hold; equal only if nothing changed."""
    found = {}
    for name, module in model.named_modules():
        for what, each in ((name, module), (f"{name} config", config_of(module))):
            found[what] = _attributes(each)
        found[f"{name} settings"] = _attributes(getattr(module, ATTRIBUTE, None))
    return found


def _attributes(thing):
    if thing is None:
        return None
    return {
        name: {key: id(each) for key, each in value.items()} if isinstance(value, dict) else id(value)
        for name, value in vars(thing).items()
    }


def calls(action, fail_at=None):
    """What `action` returns, and the functions of Crisp and transformers it calls; call `fail_at` raises."""
    made: list[str] = []

    def trace(frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file != ITSELF and (file.startswith(HOUSE) or "/transformers/" in file):
            if len(made) == fail_at:
                raise InjectedError(frame.f_code.co_qualname)
            made.append(frame.f_code.co_qualname)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return action(), made
    finally:
        sys.settrace(before)


def steps(build, change):
    """The first and the last call, in turn, of every function that the change calls, by their numbers."""
    change(build())  # so that what is cached is cached
    model = build()
    _, made = calls(lambda: change(model))
    last = {name: number for number, name in enumerate(made)}
    first = {name: number for number, name in reversed(list(enumerate(made)))}
    return sorted((first, last)[at % 2][name] for at, name in enumerate(sorted(first)))


def small_bart():
    model = bart()
    model.model.encoder.layers, model.model.decoder.layers = (
        part.layers[:1] for part in (model.model.encoder, model.model.decoder)
    )
    return model


def one_layer():
    return distilbert(layers=1)


def sparse_with_cache_hooks():
    return crisp.sparsify(one_layer(), BlockTopK(0.5, block_size=2))


def with_learned_alpha():
    return crisp.sparsify(one_layer(), Entmax("learned"), phase="eval")


def with_a_sparse_part():
    model = one_layer()
    crisp.sparsify(model.distilbert, Entmax("learned"))
    return model


def entered(context):
    stack = ExitStack()
    stack.enter_context(context)
    return stack


def restorable(folder):
    with_learned_alpha().save_pretrained(folder)
    with restoring():
        return type(one_layer()).from_pretrained(folder)


CHANGES = {
    "sparsify": (small_bart, lambda m: crisp.sparsify(m, TopK(0.5), attention="all")),
    "sparsify, learned": (one_layer, lambda m: crisp.sparsify(m, Entmax("learned"))),
    "sparsify again": (sparse_with_cache_hooks, lambda m: crisp.sparsify(m, TopK(0.5))),
    "sparsify, other parameters": (
        with_learned_alpha,
        lambda m: crisp.sparsify(m, BlockTopK(0.5, block_size=2)),
    ),
    "sparsify a whole with a sparse part": (with_a_sparse_part, lambda m: crisp.sparsify(m, TopK(0.5))),
    "densify": (with_learned_alpha, crisp.densify),
    "set_sparsity": (sparse_with_cache_hooks, lambda m: crisp.set_sparsity(m, 0.8)),
    "measuring": (one_layer, lambda m: entered(crisp.measuring(m))),
    "restore": (restorable, crisp.restore),
    "having": (with_learned_alpha, lambda m: entered(borrowed(m, method=TopK(0.5)))),
}


@pytest.mark.parametrize(("build", "change"), CHANGES.values(), ids=CHANGES)
def test_a_failure_in_any_function_leaves_the_model_as_it_was(build, change, tmp_path):
    build = partial(build, tmp_path) if build is restorable else build
    model = build()
    before = state(model)
    failing = steps(build, change)
    assert len(failing) > 20
    for number in failing:
        with pytest.raises(InjectedError) as failure:
            calls(lambda: change(model), fail_at=number)
        assert state(model) == before, f"after a failure in call {number}, {failure.value}"
    changed = change(model)
    assert state(model) != before
    if isinstance(changed, ExitStack):
        changed.close()
        assert state(model) == before


def test_another_method_for_a_while_leaves_no_trace():
    model = with_learned_alpha()
    before = state(model)
    for method in (TopK(0.5), Entmax("learned"), BlockTopK(0.5, block_size=2), Dense()):
        with borrowed(model, method=method):
            assert state(model) != before
        assert state(model) == before


def test_measuring_a_dense_model_leaves_no_trace_even_of_settings_that_its_checkpoint_holds(tmp_path):
    crisp.sparsify(one_layer(), TopK(0.5)).save_pretrained(tmp_path)
    with pytest.warns(crisp.SparseCheckpointLoadedDense):
        model = type(one_layer()).from_pretrained(tmp_path)
    before = state(model)
    with crisp.measuring(model):
        assert state(model) != before
    assert state(model) == before
    assert torch.equal(logits(crisp.restore(model)), logits(crisp.sparsify(one_layer(), TopK(0.5))))


def test_a_quantised_model_that_holds_no_parameters_can_have_a_learned_alpha():
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantize = torch.ao.quantization.quantize_dynamic
        model = quantize(noisy(BertModel(config)), {torch.nn.Linear}, dtype=torch.qint8)
    ids = torch.arange(8)[None]
    crisp.sparsify(model, Entmax(1.5), backend="reference")
    fixed = model(ids).last_hidden_state
    crisp.sparsify(model, Entmax("learned"), backend="reference")
    torch.testing.assert_close(model(ids).last_hidden_state, fixed, rtol=1e-3, atol=1e-3)
    for name, parameter in model.named_parameters():
        if name.endswith("crisp_learned.rule.alpha"):
            torch.nn.init.constant_(parameter, 1.0)
    assert not torch.allclose(model(ids).last_hidden_state, fixed, atol=1e-2)
