"""The child process in which memory and first calls are measured: a task as JSON comes in, numbers go out."""

import json
import resource
import sys
import time
from dataclasses import replace
from typing import Any

import psutil
import torch

from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import DENSE, Call, Contender, crisp, dense
from crisp_attention.methods.spec import parse
from crisp_attention.peak_memory import forget_peak, peak_memory

SHARE = 0.8  # of the free memory that may be taken
WARM = 256  # tokens of the call that loads and compiles what the measured one needs


def memory(contender: Contender, shape: Shape, backward: bool) -> dict[str, Any]:
    """Bytes that a call takes at its peak, on top of its inputs."""
    warm = replace(shape, length=min(WARM, shape.length))
    contender.call(warm, backward)()
    call = contender.call(shape, backward)
    if shape.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return {"bytes": torch.cuda.max_memory_allocated() - before, "counter": "torch.cuda"}
    _bound()
    device = torch.device(shape.device)
    counter = "VmHWM" if forget_peak(device) else "ru_maxrss"
    before = peak_memory(device)
    call()
    return {"bytes": peak_memory(device) - before, "counter": counter}


def first_call(contender: Contender, shape: Shape) -> dict[str, Any]:
    """Seconds of the first forward pass, the first with a backward pass, and a later one of that kind."""
    forward, both = contender.call(shape, False), contender.call(shape, True)
    return {
        name: _seconds(call) for name, call in (("forward", forward), ("backward", both), ("later", both))
    }


def _seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _bound() -> None:
    """Limit allocations to most of the free memory, so that they fail here and not the machine."""
    if sys.platform == "linux":
        room = psutil.Process().memory_info().vms + int(SHARE * psutil.virtual_memory().available)
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))


def main() -> None:
    """Do the task on standard input; its numbers, or why there are none, are the last line of the output."""
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    shape = Shape(**task["shape"])
    causal = shape.causal
    contender = dense(causal) if task["contender"] == DENSE else crisp(parse(task["method"]), causal=causal)
    try:
        found = (
            memory(contender, shape, task["backward"])
            if task["what"] == "memory"
            else first_call(contender, shape)
        )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
            found = {"absent": f"needs more than {SHARE:.0%} of the free memory"}
        else:
            found = {"absent": f"fails: {str(error).splitlines()[0]}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
