import datasets
import pytest

from tests.training import small


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> str:
    return small.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> str:
    return small.reviews(tmp_path_factory.mktemp("reviews"))
