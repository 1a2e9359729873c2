"""What was asked for, kept as JSON and compared when it is continued."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("crisp-attention", "torch", "transformers", "datasets", "accelerate", "numpy")


def plain(options: Any) -> dict[str, Any]:
    """The options, a dataclass, as values that JSON gives back as they are."""
    values = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()
    }
    return json.loads(json.dumps(values))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The options that are not what they were, as a person typed them; empty if there are none."""
    return "; ".join(
        f"--{name.replace('_', '-')} was {_shown(before.get(name))}, is {_shown(now[name])}"
        for name in now
        if now[name] != before.get(name)
    )


def versions() -> dict[str, str]:
    """The installed versions of what decides a run's numbers."""
    return {package: version(package) for package in PACKAGES}


def finite(data: Any) -> Any:
    """The same with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file in one step: it is there complete, or not at all. NaN and infinities become null."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(finite(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "not given"
    return "not given" if value is None else str(value)
