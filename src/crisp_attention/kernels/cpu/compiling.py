"""Compile a kernel when it is first called, and say so if that takes a while."""

import logging
from functools import cache
from importlib import import_module
from threading import Timer
from typing import Any

PATIENCE = 4.0  # seconds; from the cache on disk, kernels are there in less


@cache
def loaded(name: str) -> Any:
    """The kernel `name`: "forward", "backward", "blocks_forward" or "blocks_backward"."""
    text = "compiling a kernel for this CPU (%s): some ten seconds, once on this machine"
    notice = Timer(PATIENCE, logging.getLogger(__name__).warning, (text, name))
    notice.daemon = True
    notice.start()
    try:
        module = import_module(f"crisp_attention.kernels.cpu.{name}")
    finally:
        notice.cancel()
    return getattr(module, name.removeprefix("blocks_"))
