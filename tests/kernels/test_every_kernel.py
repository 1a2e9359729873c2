"""Our kernels keep the contract of all kernels."""

import pytest
import torch

from crisp_attention.kernels.registry import KERNELS
from crisp_attention.testing import KernelContract
from crisp_attention.testing.calls import METHODS
from crisp_attention.testing.kernels import FIXED

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TF32 = 2.0**-135 if GPU else KernelContract.smallest  # below which tensor cores have no numbers


class TestCpu(KernelContract):
    kernel, at_most = KERNELS["cpu"], 5
    methods = FIXED | {"entmax, learned": METHODS["entmax, learned"]}


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
class TestFlex(KernelContract):
    kernel, device, at_most = KERNELS["flex"], DEVICE, 1
    longest = KernelContract.longest if GPU else 64
    methods = {name: METHODS[name] for name in ("block_topk", "block_topk, 16", "block_topk, 64")}  # noqa: RUF012


@pytest.mark.cuda
@pytest.mark.slow  # where there is no GPU, Triton's interpreter takes minutes, the more the longer rows are
class TestTriton(KernelContract):
    kernel, device, smallest = KERNELS["triton"], DEVICE, TF32
    methods = {name: METHODS[name] for name in ("topk", "topp", "threshold", "dense")}  # noqa: RUF012
    longest, at_most = (KernelContract.longest, None) if GPU else (33, 1)


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
class TestTritonBlocks(KernelContract):
    kernel, device, smallest = KERNELS["triton_blocks"], DEVICE, TF32
    methods = {name: METHODS[name] for name in ("block_topk, 16", "block_topk, 64", "window")}  # noqa: RUF012
    longest, at_most = (KernelContract.longest, None) if GPU else (66, 1)
