"""The model a run starts from, and what turns examples into its inputs."""

from crisp_attention.errors import OptionError
from crisp_attention.models.transformers.checkpoints import model_folder
from crisp_attention.runs.sources.agreement import agree
from crisp_attention.runs.sources.builtin import MINILM, minilm_folder, small_vit
from crisp_attention.runs.sources.encoding import encoded
from crisp_attention.runs.sources.images import image_model
from crisp_attention.runs.sources.pretrained import read_tokenizer
from crisp_attention.runs.sources.source import Batch, Source
from crisp_attention.runs.sources.text import MAX_LENGTH, text_model
from crisp_attention.runs.task import Task

__all__ = ["MINILM", "Batch", "Source", "agree", "encoded", "load_source", "minilm_folder", "read_tokenizer"]


def load_source(name: str, task: Task, max_length: int | None, *, keep_record: bool = False) -> Source:
    """Load `name`: a hub id, a folder of a model or of a run, `builtin:minilm` or `builtin:vit`.

    `max_length`: tokens of a text, None for 128. `keep_record`: what a model was saved with stays in its
    configuration, so that `crisp.restore` can make it sparse again. Raises CheckpointError if the model cannot be read,
    OptionError if it or the length does not fit the data, DataError if an image cannot be read.
    """
    if name.startswith("builtin:"):
        if name not in ("builtin:minilm", "builtin:vit"):
            raise OptionError(f"unknown model {name!r}; built in are builtin:minilm and builtin:vit")
        wants_images = name == "builtin:vit"
        if wants_images != (task.image_column is not None):
            found = (
                f"images ({task.image_column})"
                if task.image_column
                else f"text ({', '.join(task.text_columns)})"
            )
            raise OptionError(
                f"{name} reads {'images' if wants_images else 'text'}, the data set holds {found}"
            )
    if task.image_column is not None and max_length is not None:
        raise OptionError(f"max_length has no meaning for images ({task.image_column})", "max_length")
    if name == "builtin:vit":
        return small_vit(task)
    path = minilm_folder() if name == "builtin:minilm" else model_folder(name)
    if task.image_column is not None:
        return image_model(path, task, keep_record=keep_record)
    return text_model(path, task, MAX_LENGTH if max_length is None else max_length, keep_record=keep_record)
