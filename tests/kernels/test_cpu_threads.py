"""Where the CPU kernels are called from: many threads, children of fork, workers of a data loader."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import crisp_attention as crisp
from tests.cases import normal

QUERY, KEY, VALUE = (normal(4, 4, 96, 16, seed=seed, dtype=torch.float32) for seed in range(3))
METHOD = crisp.TopK(0.8)


def attend() -> torch.Tensor:
    """Forward and backward; the gradient of the keys says whether both were right."""
    key = KEY.clone().requires_grad_()
    crisp.attention(QUERY, key, VALUE, METHOD, backend="cpu").sum().backward()
    return key.grad


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_calls_from_many_threads_at_once_give_what_one_gives() -> None:
    alone = attend()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: attend(), range(64)):
            assert found.equal(alone)


class Attending(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(2)  # a data loader leaves its workers one
        return attend()


def test_workers_of_a_data_loader_that_were_forked_after_use_attend_as_well() -> None:
    alone = attend()
    loader = DataLoader(
        Attending(), num_workers=2, multiprocessing_context="fork", timeout=120, batch_size=None
    )
    for found in loader:
        assert found.equal(alone)


FORKED = """
import os, torch
import crisp_attention as crisp

torch.set_num_threads(2)
torch.manual_seed(0)
query = torch.randn(4, 4, 96, 16)
attend = lambda: crisp.attention(query, query, query, crisp.TopK(0.8), backend="cpu")
alone = attend() if {used} else None
child = os.fork()
if child == 0:
    torch.save(attend(), "child.pt")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert torch.load("child.pt").equal(attend() if alone is None else alone)
"""


@pytest.mark.slow
@pytest.mark.parametrize("used", [False, True])
def test_a_child_of_fork_attends_whether_or_not_its_parent_has(tmp_path, used) -> None:
    script = FORKED.format(used=used)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True, timeout=240)
