"""Parts that do what a part on a GPU may do."""

import os
import signal
import subprocess
import sys
import time


def finds(setting, emit):
    print(f"quick: {setting.quick}, on {setting.device}")
    emit({"kind": "one", "failed": []})
    emit({"kind": "two", "failed": []})


def finds_a_fault(setting, emit):
    emit({"failed": [{"name": "top-k", "reason": "wrong"}]})


def raises(setting, emit):
    emit({"kind": "before"})
    raise RuntimeError("boom")


def dies(setting, emit):
    emit({"kind": "before"})
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(setting, emit):
    """With a process of its own, which keeps the pipe open."""
    emit({"kind": "before"})
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)
