"""The Triton kernels compile for GPUs that need not be there.

The interpreter is more lenient than the compiler, about types that change inside a branch for one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crisp_attention.kernels import triton_rows

pytest.importorskip("triton", reason="triton is not installed; it is for Linux only")
pytestmark = pytest.mark.slow


def compiled(module: str) -> list[str]:
    """The lines that a module prints, one for each kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.kernels.{module}"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_rows_and_blocks() -> None:
    found = [line.split() for line in compiled("triton_compiling")]
    assert len(found) == 18 + 8 + 2 * 4 + 4 * 3 + 2 * 6 + 2 * 4
    # of heads; of rows of products the longest has 4096 blocks
    assert {int(width) for _, width in found} == {64, 128, triton_rows.WIDEST, 4096}


def test_linear_layers_of_blocks() -> None:
    assert len(compiled("block_linear_compiling")) == 2 * 3 * 4 * 2 * 4


def test_tiles_are_shared_by_more_warps_the_larger_they_are() -> None:
    from crisp_attention.kernels.triton_blocks import operators

    half, single = (
        [operators.options(dtype, size, 128)["num_warps"] for size in (16, 64, 128)]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half == [4, 4, 8]
    assert single == [4, 8, 8]
