"""The deliberate faults of `tests/faults.py` can be put in; trying them takes too long for every change."""

import pytest

from tests.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_line_that_a_fault_replaces_occurs_once(fault):
    assert fault.path.read_text(encoding="utf-8").count(fault.right) == 1
    assert fault.wrong != fault.right
