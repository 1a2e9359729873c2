"""What tests of models share."""

import pytest
from torch import nn


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the modules that were walked over since the test began, or since the list was cleared."""
    seen: list[str] = []
    for walk in ("named_modules", "named_children", "named_parameters"):  # the others are made of them
        whole = getattr(nn.Module, walk)
        monkeypatch.setattr(
            nn.Module,
            walk,
            lambda self, *args, _whole=whole, **how: (
                seen.append(type(self).__name__) or _whole(self, *args, **how)
            ),
        )
    return seen
