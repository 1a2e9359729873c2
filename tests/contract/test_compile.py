"""torch.compile sees one graph: nothing in the attention function breaks it."""

import pytest
import torch
from torch import nn

import crisp_attention as crisp
from tests.contract.families import inputs, valid_outputs
from tests.contract.rows import pairs
from tests.programs import bert, llama, tokens
from tests.table import ROWS


def check(model: nn.Module, call) -> None:
    torch._dynamo.reset()
    expected = call(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(compiled), expected, rtol=1e-5, atol=1e-5)


EACH_WAY = ("topk", "nofm", "random", "window+topk", "block_topk+entmax")


@pytest.mark.parametrize(
    ("build", "names"),
    [
        pytest.param(bert, EACH_WAY, id="bert"),
        *(
            pytest.param(build, ROWS, id=f"{build.__name__}, every method", marks=pytest.mark.slow)
            for build in (bert, llama)
        ),
    ],
)
def test_methods_in_layers_of_their_own_compile_into_one_graph(build, names) -> None:
    ids, mask = tokens(12)
    check(
        build(*(ROWS[name].method for name in names)),
        lambda model: model(input_ids=ids, attention_mask=mask)[0][mask.bool()],
    )


@pytest.mark.slow
@pairs(("distilbert", "gemma2", "vit"), core=set())
def test_compiled_equals_eager(family, row) -> None:
    model = crisp.sparsify(family.build(), row.method)
    batch = inputs(family, model)
    check(model, lambda model: valid_outputs(family, model(**batch), batch))
