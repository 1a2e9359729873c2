"""What a machine has run out of, from the errors by which its libraries say so."""

import errno
from enum import Enum

import torch


class Shortage(Enum):
    """Space on the disk, or memory."""

    DISK = "no space is left on the device"
    MEMORY = "there is not enough memory; smaller batches, or shorter texts, need less"


# as safetensors and PyTorch say it, whose errors have no number
SAID = {
    Shortage.DISK: ("No space left on device", "PytorchStreamWriter failed writing"),
    Shortage.MEMORY: ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc"),
}
NUMBERS = {
    errno.ENOSPC: Shortage.DISK,
    errno.EDQUOT: Shortage.DISK,
    errno.ENOMEM: Shortage.MEMORY,
}


def shortage(error: BaseException | None) -> Shortage | None:
    """What lay behind the error, or behind one that it came from; None if it was something else."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return Shortage.MEMORY
        if isinstance(error, OSError) and error.errno in NUMBERS:
            return NUMBERS[error.errno]
        for kind, words in SAID.items():
            if any(each in str(error) for each in words):
                return kind
        error = error.__cause__ or error.__context__
    return None
