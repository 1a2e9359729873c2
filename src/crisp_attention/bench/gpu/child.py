"""The process of one part: what to do as JSON in the first argument, rows as lines of JSON in a file."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from crisp_attention.bench.gpu.parts import Setting


def main(task: dict[str, Any]) -> None:
    """Call the function of a part."""
    module, _, function = task["run"].partition(":")
    setting = Setting(task["seconds"], task["quick"], task["device"])
    with Path(task["into"]).open("a", encoding="utf-8") as lines:

        def emit(found: dict[str, Any]) -> None:
            print(json.dumps(found), file=lines, flush=True)

        getattr(import_module(module), function)(setting, emit)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
