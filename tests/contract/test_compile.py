"""torch.compile sees one graph: nothing in the attention function breaks it."""

import pytest
import torch
from torch import nn

import crisp_attention as crisp
from tests.contract.families import available, inputs, valid_outputs
from tests.programs import bert, every_second_method, llama, tokens


def check(model: nn.Module, call) -> None:
    torch._dynamo.reset()
    expected = call(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(compiled), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("build", [bert, llama])
def test_methods_in_layers_of_their_own_compile_into_one_graph(build) -> None:
    ids, mask = tokens(12)
    model = build(*every_second_method(build))
    check(model, lambda model: model(input_ids=ids, attention_mask=mask)[0][mask.bool()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distilbert", "gemma2", "vit"])
def test_compiled_equals_eager(name) -> None:
    """Of families whose attention is called in other ways."""
    family = next((each for each in available() if each.name == name), None)
    if family is None:
        pytest.skip(f"the installed transformers has no {name} that can be sparse")
    model = crisp.sparsify(family.build(), crisp.TopK(0.6))
    batch = inputs(family, model)
    check(model, lambda model: valid_outputs(family, model(**batch), batch))
