"""Several processes that prune one model."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from crisp_attention import pruning
from tests.pruning.test_masks import bert
from tests.pruning.test_steps import BATCHES


def prune(rank: int, folder: str) -> None:
    """Each process has one of two batches."""
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    masks = pruning.step(bert(), BATCHES[rank : rank + 1], 0.7, block_size=8)
    torch.save(masks.kept, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_keep_the_weights_that_one_would_with_all_batches(tmp_path: Path) -> None:
    multiprocessing.spawn(prune, (str(tmp_path),), nprocs=2)
    expected = pruning.step(bert(), BATCHES, 0.7, block_size=8).kept
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(each.equal(expected[name]) for name, each in found.items())
