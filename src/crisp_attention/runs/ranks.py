"""Which of a run's processes this is. Imports nothing heavy: the command line reads it before all else."""

import os
import time

GRACE = 5.0  # seconds


def is_main() -> bool:
    """Whether this is the process that writes and speaks: the only one, or the first of several.

    torchrun and accelerate launch tell each process its rank in the environment.
    """
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def after_main() -> None:
    """Leave the main process time to say why a run ends: launchers stop all as soon as one has ended."""
    if not is_main():
        time.sleep(GRACE)
