import json
from pathlib import Path

import pytest

from crisp_attention.runs.finetune import Run
from tests.runs import small


@pytest.fixture(autouse=True, scope="session")
def _own_cache(own_cache) -> None:
    pass


@pytest.fixture(scope="session")
def finished(own_cache, tmp_path_factory, reviews) -> Run:
    """A run for tests that only read it; it began with a model that returns its attention weights at every call."""
    start = tmp_path_factory.mktemp("start")
    config = Path(small.bert(start)) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"output_attentions": True}))
    output = tmp_path_factory.mktemp("finished") / "run"
    return small.tuned(small.options(str(start), reviews, output, epochs=1, sparsity=0.7))
