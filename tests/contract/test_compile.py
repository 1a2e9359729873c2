"""torch.compile sees one graph: nothing in the attention function breaks it."""

import torch

import crisp_attention as crisp
from tests.contract.families import inputs, valid_outputs
from tests.contract.rows import pairs


@pairs(("distilbert", "bert", "llama", "gemma2", "vit"), core={"bert", "llama"})
def test_compiled_equals_eager(family, row):
    torch._dynamo.reset()
    model = crisp.sparsify(family.build(), row.method)
    batch = inputs(family, model)
    expected = valid_outputs(family, model(**batch), batch)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        valid_outputs(family, compiled(**batch), batch), expected, rtol=1e-5, atol=1e-5
    )
