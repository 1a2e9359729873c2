"""A model saved sparse comes back sparse."""

import json
import warnings
from pathlib import Path
from typing import Any, TypeVar

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from crisp_attention.kernels.dispatch import AUTO, check_backend
from crisp_attention.models import record
from crisp_attention.models.apply import activate, outermost
from crisp_attention.models.configs import check_savable
from crisp_attention.models.learned import MODULE, fill_parameters, read_parameters
from crisp_attention.models.notice import DenseUntilRestored, restoring
from crisp_attention.models.rollback import all_or_nothing
from crisp_attention.models.selection import by_name
from crisp_attention.models.settings import attention_layers

# what says where a file of the hub lies, for the configuration as for the weights
HUB = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
# what configurations, models and processors raise where a file gives them a value that they cannot use
UNUSABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
Model = TypeVar("Model", bound=nn.Module)


class CheckpointError(ValueError):
    """A folder or file that should hold a model cannot be read as one."""


def restore(model: Model, *, backend: str = AUTO) -> Model:
    """Make a model sparse again, in place, as its config says. Returns the model.

    What its methods learned is read from where the model was loaded; `backend` is as in `sparsify`.
    Raises ValueError if the config holds no settings, names layers that the model does not have, or what
    was learned is not found.
    """
    return _restore(model, outermost(model).name_or_path or "", backend)


def _restore(model: Model, path: str | Path, backend: str, **hub: Any) -> Model:
    check_backend(backend)
    root = outermost(model)
    settings = record.read(root.config)
    if settings is None:
        raise ValueError(f"the config of this {type(root).__name__} holds no Crisp settings to restore")
    methods, phase = settings
    found = attention_layers(root)
    chosen = [(by_name(found, name), method) for name, method in methods.items()]
    learned = read_parameters(chosen, path, **hub)
    check_savable(root)
    with all_or_nothing(root):
        activate(root, {layer.index: method for layer, method in chosen}, phase, backend)
        record.write(root)
        fill_parameters(learned)
    return model


def load(path: str | Path, *, backend: str = AUTO, **kwargs: Any) -> PreTrainedModel:
    """Load a model, sparse if it was saved sparse, as the class it was saved from.

    `path` is a folder, a run's folder or a hub id, `backend` as in `sparsify`, `kwargs` go to `from_pretrained`. Only
    safetensors are read, nothing is unpickled. Warns if the checkpoint holds no settings, so that the
    model is dense. Raises CheckpointError if the folder is not a model or a file in it is damaged, and
    TypeError for `use_safetensors` and `output_loading_info`.
    """
    for refused in ("use_safetensors", "output_loading_info"):
        if refused in kwargs:
            raise TypeError(f"crisp.load does not take {refused}: it reads safetensors and returns the model")
    path = path if "subfolder" in kwargs else model_folder(path)
    with restoring():
        hub = {name: kwargs[name] for name in HUB & set(kwargs)}
        config = read_config(path, **hub)
        cls = model_class(config, path)
        model = read_model(_expecting_learned(cls), path, use_safetensors=True, **kwargs)
        model.__class__ = cls
    if record.read(model.config) is not None:
        return _restore(model, path, backend, variant=kwargs.get("variant"), **hub)
    warnings.warn(f"{path} holds no Crisp settings: the model is dense", DenseUntilRestored, stacklevel=2)
    return model


def model_folder(path: str | Path) -> str | Path:
    """Where the model is: in `path` itself, or, where that is the folder of a run of `crisp finetune`, in it."""
    inside = Path(path) / "model"
    has_weights = any(Path(path).glob("*.safetensors*"))
    return inside if (inside / "config.json").is_file() and not has_weights else path


def read_config(path: str | Path, **kwargs: Any) -> transformers.PreTrainedConfig:
    """The configuration at `path`; CheckpointError says what is wrong with a folder that has none."""
    folder = Path(path) / kwargs.get("subfolder", "")
    if folder.is_dir() and not (folder / "config.json").is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{path} is not a model: expected config.json and model.safetensors, found {inside}"
        )
    if folder.is_file():
        raise CheckpointError(f"{path} is a file; a model is a folder with config.json and model.safetensors")
    if not folder.exists() and (folder.is_absolute() or str(path).startswith(".")):
        raise CheckpointError(f"no such folder: {path}")
    if (folder / "config.json").is_file() and _of_a_run(folder / "config.json"):
        raise CheckpointError(
            f"{path} is the folder of a run that holds no model: the run has not finished, or it kept none "
            f"(crisp finetune with --discard-model, crisp sweep without --keep-models)"
        )
    try:
        return AutoConfig.from_pretrained(path, **kwargs)
    except (OSError, *UNUSABLE) as error:
        raise CheckpointError(
            f"cannot read a model configuration from {path}: {_first_line(error)}"
        ) from error


def read_model(cls: Any, path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """`cls.from_pretrained(path)`; a damaged file or an unusable value is a CheckpointError that names the folder."""
    try:
        return cls.from_pretrained(path, **kwargs)
    except SafetensorError as error:
        raise CheckpointError(f"the weights in {path} are damaged or cut short: {error}") from error
    except (OSError, *UNUSABLE) as error:
        raise CheckpointError(f"cannot load a model from {path}: {_first_line(error)}") from error


def model_class(config: transformers.PreTrainedConfig, path: str | Path) -> type[PreTrainedModel]:
    """The class a checkpoint was saved from. Raises CheckpointError if transformers has no such class."""
    names = config.architectures or []
    if len(names) != 1 or not hasattr(transformers, names[0]):
        raise CheckpointError(
            f"{path} names the architectures {names}; expected exactly one class of transformers. Load it with its "
            f"own class and call crisp.restore(model)"
        )
    return getattr(transformers, names[0])


def _of_a_run(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and {"options", "versions"} <= set(found) and "model_type" not in found


def _expecting_learned(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    # a dense model has no place for what attention learned, and would report it as unexpected
    ignored = [*(cls._keys_to_ignore_on_load_unexpected or []), rf"\.{MODULE}\."]
    body = {"__module__": cls.__module__, "_keys_to_ignore_on_load_unexpected": ignored}
    return type(cls.__name__, (cls,), body)


def _first_line(error: Exception) -> str:
    if isinstance(
        error, StrictDataclassError
    ):  # its first line names the field, the second one says what is wrong
        return " ".join(str(error).split())
    lines = str(error).strip().splitlines()
    if not lines or isinstance(error, (AssertionError, LookupError)):
        return ": ".join([type(error).__name__, *lines[:1]])
    return lines[0]
