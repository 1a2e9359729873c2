"""The most memory that a process, or its GPU, has held."""

import resource
import sys
from pathlib import Path

import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def forget_peak(device: torch.device) -> bool:
    """Reset the peak; False where the system can only count it from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text("5")  # Linux: VmHWM becomes what is resident now
    except OSError:
        return False
    return _resident_peak() is not None


def peak_memory(device: torch.device) -> int:
    """Bytes: on a CUDA device the most allocated, else the most that was resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := _resident_peak()) is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident_peak() -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
