"""What this machine is called, and where programs keep things on it that they can do without."""

import os
import platform
import sys
from pathlib import Path

CACHE = "CRISP_CACHE"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cache_folder() -> Path:
    """The folder that the variable CRISP_CACHE names, or ours among the user's caches; it need not exist."""
    if named := os.environ.get(CACHE):
        return Path(named)
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = home / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return caches / "crisp-attention"
