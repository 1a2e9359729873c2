"""Every row of the table keeps the contract, and means what its oracle says."""

import pytest
import torch

from crisp_attention.methods.part import Shape
from crisp_attention.testing import LayoutContract, MethodContract, RuleContract
from tests.table import ROWS, Row

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


RULES = {name: row.method for name, row in ROWS.items() if row.method.layout.name == "full"}
LAYOUTS = {
    name: row.method for name, row in ROWS.items() if row.method.rule.name == "dense" and name != "dense"
}
# what has to be fitted keeps it in a test of its own
BOTH = {
    name: row.method for name, row in ROWS.items() if name not in RULES | LAYOUTS and not row.method.is_fitted
}


# what the contract compiles one by one, test_functional.py compiles all at once, among the slow tests
class TestRules(RuleContract):
    test_it_compiles_into_one_graph = None

    @pytest.fixture(params=RULES.values(), ids=RULES)
    def tested(self, request):
        return request.param


class TestLayouts(LayoutContract):
    test_it_compiles_into_one_graph = None

    @pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
    def tested(self, request):
        return request.param


class TestBoth(MethodContract):
    test_it_compiles_into_one_graph = None

    @pytest.fixture(params=BOTH.values(), ids=BOTH)
    def tested(self, request):
        return request.param


@every_row
def test_it_is_what_it_means(row: Row) -> None:
    learned = row.method.parameters(Shape(1, 1, 1))
    if row.meaning is None or any(not name.startswith("branch.") for name in learned):
        pytest.skip("what is drawn or learned has no meaning of its own")
    contract = MethodContract()
    call = contract.call(row.method, 9, valid=torch.ones(9, 9, dtype=torch.bool).tril()[None, None])
    given = (call.query, call.key, call.value, row.method)
    output, weights = row.meaning(*given, scale=call.scale, valid=call.valid, parameters=call.parameters)
    found = contract.attend(call)
    torch.testing.assert_close(found[0], output, rtol=1e-12, atol=1e-12)
    if not row.method.has_branch:  # which has no weights
        torch.testing.assert_close(found[1], weights, rtol=1e-12, atol=1e-12)
