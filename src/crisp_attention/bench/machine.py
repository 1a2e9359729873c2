"""The machine a run was on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "crisp-attention",
    "torch",
    "numpy",
    "numba",
    "triton",
    "transformers",
    "x-transformers",
    "entmax",
)


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, memory, load before the run, versions; None for what is not there."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load_before": psutil.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def described(found: dict[str, Any]) -> str:
    """The machine in one line."""
    where = found["gpu"] or f"{found['processor']}, {found['cores'] or found['logical_cores']} cores"
    return (
        f"{where}, {found['threads']} threads, torch {found['versions']['torch']}, {found['capability']}, "
        f"Python {found['python']}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
