"""Which checkpoint an interrupted run can continue from."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from crisp_attention.models.persistence import CheckpointError


def newest_checkpoint(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The newest complete checkpoint in `folder`, and a note for each damaged one passed over.

    None if there is no checkpoint at all: the run starts anew. Raises CheckpointError if there are
    checkpoints and all are damaged.
    """
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1]))
    notes: list[str] = []
    for checkpoint in reversed(found):
        if (damage := _damage(checkpoint)) is None:
            return checkpoint, tuple(notes)
        notes.append(f"{checkpoint.name} is damaged and was passed over: {damage}")
    if found:
        raise CheckpointError(f"no checkpoint in {folder} can be continued from: {'; '.join(notes)}")
    return None, ()


def _damage(checkpoint: Path) -> str | None:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        weights = list(checkpoint.glob("*.safetensors"))
        if not weights:
            return "it holds no weights"
        for file in weights:
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None
