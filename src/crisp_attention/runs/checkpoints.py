"""Which checkpoint an interrupted run can continue from."""

import json
import re
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import transformers
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from crisp_attention.errors import CheckpointError, OptionError

NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
STATE = "trainer_state.json"
ARCHIVES = ("optimizer.pt", "scheduler.pt")
RESUMES_FROM = "5.7"  # before, the Trainer leaves out LayerNorm weights that were renamed since BERT


def check_resuming() -> None:
    """Raises OptionError if the installed transformers restores checkpoints wrongly."""
    installed = transformers.__version__
    if Version(installed).release < Version(RESUMES_FROM).release:
        raise OptionError(
            f"resume needs transformers {RESUMES_FROM} or later, which restores all weights of a checkpoint; "
            f"installed is {installed}",
            "resume",
        )


def newest_checkpoint(folder: Path, processes: int = 1) -> tuple[Path | None, tuple[str, ...]]:
    """The newest complete checkpoint in `folder`, and a note for each damaged one passed over.

    None if there is no checkpoint at all: the run starts from the beginning. Raises CheckpointError if there are
    checkpoints and all are damaged.
    """
    named = [(int(match[1]), path) for path in folder.glob("*") if (match := NAME.fullmatch(path.name))]
    states = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    archives = (*ARCHIVES, *states)
    notes: list[str] = []
    for _, checkpoint in sorted(named, reverse=True):
        if (damage := _damage(checkpoint, archives)) is None:
            return checkpoint, tuple(notes)
        notes.append(f"{checkpoint.name} is damaged and was passed over: {damage}")
    if named:
        raise CheckpointError(
            f"no checkpoint in {folder} can be continued from; overwrite=True starts again: {'; '.join(notes)}"
        )
    return None, ()


def _damage(checkpoint: Path, archives: tuple[str, ...]) -> str | None:
    weights = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    for name in (STATE, CONFIG_NAME, *archives, *(weights or ["model.safetensors"])):
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        try:
            if name in (STATE, CONFIG_NAME):
                json.loads(file.read_text(encoding="utf-8"))
            elif name in archives:
                ZipFile(file).close()
            else:
                with safe_open(file, framework="pt"):
                    pass
        except (OSError, ValueError, BadZipFile, SafetensorError) as error:
            return f"{name} is cut short or damaged ({error})"
    return None
