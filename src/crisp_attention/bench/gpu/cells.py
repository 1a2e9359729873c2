"""What a run on a GPU measures, as values: cells of tables. Imports nothing heavy."""

from dataclasses import dataclass

FORWARD, BOTH, STEP = "forward", "forward + backward", "training step"
DENSE = ("dense, flash", "dense, cuDNN", "dense, efficient", "dense, math")
CUBLAS = "dense, cuBLAS"


@dataclass(frozen=True)
class Cell:
    """A column of a table in one direction: all its contenders, dense ones first, are timed in the same rounds."""

    group: str
    column: str
    direction: str
    contenders: tuple[str, ...]
