"""The heads that a module says it has are those that its attention is called with."""

import pytest

import crisp_attention as crisp
from crisp_attention.models.host import host_of
from tests.contract.families import available
from tests.contract.test_families import run


@pytest.mark.parametrize("family", available(), ids=lambda family: family.name)
def test_heads_are_counted_as_the_forward_pass_has_them(family) -> None:
    model = family.build()
    with crisp.measuring(model) as measured:
        run(family, model)
    host, root = host_of(model)
    seen = measured.table().groupby("name")["head"].count().to_dict()
    assert seen == {layer.name: host.shape(layer.module).heads for layer in host.layers(root)}
