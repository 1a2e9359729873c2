"""Loading pipelines whose transformers were saved sparse."""

from pathlib import Path
from typing import Any

from torch import nn

from crisp_attention.errors import CheckpointError
from crisp_attention.kernels.dispatch import AUTO, check_backend
from crisp_attention.models.diffusers.host import Diffusers, quiet
from crisp_attention.models.notice import restoring
from crisp_attention.models.persistence import restore_from


def load_pipeline(path: str | Path, *, backend: str = AUTO, **kwargs: Any) -> Any:
    """Load a diffusers pipeline; every part of it that was saved sparse is sparse again.

    Parameters
    ----------
    path
        A folder that `pipe.save_pretrained` wrote.
    backend
        As in `crisp.sparsify`.
    kwargs
        What `DiffusionPipeline.from_pretrained` takes.

    Returns
    -------
    The pipeline, of the class that was saved.

    Raises
    ------
    CheckpointError
        If the folder is no pipeline, or the settings of a part are damaged or do not fit it.
    ModuleNotFoundError
        Where diffusers is not installed.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> crisp.load_pipeline("nowhere")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    CheckpointError: nowhere cannot be read as a pipeline
    """
    check_backend(backend)
    from diffusers import DiffusionPipeline

    try:
        with quiet(), restoring():
            pipe = DiffusionPipeline.from_pretrained(path, **{"use_safetensors": True, **kwargs})
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read as a pipeline ({error}); crisp.load reads single models"
        ) from error
    host = Diffusers()
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module) or host.roots(part) != [part]:
            continue
        try:
            if host.read(part, part) is not None:
                restore_from(part, backend, {"path": Path(path) / name, "variant": kwargs.get("variant")})
        except ValueError as error:
            raise CheckpointError(f"cannot make {name} in {path} sparse again: {error}") from error
    return pipe
