"""What `crisp demo` can be asked for. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoOptions:
    """Compare dense with sparse attention on real data in a few minutes: 1,797 handwritten digits.

    Trains a small Vision Transformer from scratch on 300 of the images, with dense attention, top-k
    at several sparsities and random keys, several seeds each, and tests on the other 1,497.

    For example: crisp demo --output runs/demo --seeds 3
    """

    output: Path = Path("runs/demo")
    """Folder for the table and the picture; what an earlier demo left there is replaced."""

    seeds: int = 3
    """Runs per configuration, at least 2."""

    workers: int = 2
    """Runs at a time, each on one thread."""
