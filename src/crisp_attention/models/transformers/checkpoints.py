"""Reading models and adapters of transformers, with errors that say what is wrong with a folder."""

import json
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    cached_file,
    find_adapter_config_file,
    is_peft_available,
)

from crisp_attention.errors import CheckpointError
from crisp_attention.models.parameters import MODULE
from crisp_attention.models.transformers.adapters import task_of

if TYPE_CHECKING:
    from peft import PeftModel

# the class of the base model of an adapter that only names its task, as one without settings may
TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
# options that locate a file on the Hub, for the configuration as for the weights
HUB = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
# raised by configurations, models and processors for values that they cannot use
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

# files of folders that other functions read, and what to say of them
OTHERS = {
    "crisp.json": "; it was saved by crisp.save: use crisp.load_into(model, folder)",
    "model_index.json": "; it is a pipeline: use crisp.load_pipeline(folder)",
}


def read(path: str | Path, **kwargs: Any) -> "tuple[PreTrainedModel | PeftModel, dict[str, Any]]":
    """The dense model or PEFT model at `path`, and where its weights are.

    `kwargs` go to `from_pretrained`. Raises CheckpointError if the folder is not a model or a file in it is damaged.
    """
    path = path if "subfolder" in kwargs else model_folder(path)
    hub = {name: kwargs[name] for name in HUB & set(kwargs)}
    read_it = _read_adapter if _holds_only_adapter(path, hub) else _read_whole
    return read_it(path, hub, **kwargs)


def model_folder(path: str | Path) -> str | Path:
    """Where the model is: in `path` itself, or, where that is the folder of a run of `crisp finetune`, in it."""
    inside = Path(path) / "model"
    has_weights = any(Path(path).glob("*.safetensors*"))
    return inside if (inside / "config.json").is_file() and not has_weights else path


def _holds_only_adapter(path: str | Path, hub: dict[str, Any]) -> bool:
    folder = Path(path) / hub.get("subfolder", "")
    if folder.exists() or folder.is_absolute() or str(path).startswith("."):
        return (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file()
    try:
        if find_adapter_config_file(str(path), **hub) is None:
            return False
        return cached_file(path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub) is None
    except (OSError, ValueError):
        return False  # reading it as a whole model says what is wrong


def _read_whole(
    path: str | Path, hub: dict[str, Any], **kwargs: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    cls = model_class(read_config(path, **hub), path)
    model = _read_as(cls, path, **kwargs)
    return model, {"path": path, "variant": kwargs.get("variant"), **hub}


def _read_adapter(path: str | Path, hub: dict[str, Any], **kwargs: Any) -> tuple["PeftModel", dict[str, Any]]:
    if not is_peft_available():
        raise CheckpointError(f"{path} is a PEFT adapter: pip install peft to load it")
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(str(path), **hub)
        cached_file(path, ADAPTER_SAFE_WEIGHTS_NAME, **hub)  # there, so that nothing is unpickled
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load an adapter from {path}: {_first_line(error)}") from error
    if not (base := config.base_model_name_or_path):
        raise CheckpointError(
            f"{path} does not say which model its adapter belongs to: load that model, then "
            f"PeftModel.from_pretrained(model, {str(path)!r}) and crisp.restore on the result"
        )
    taken = set(signature(PeftModel.from_pretrained).parameters)
    for_base = {
        name: value for name, value in kwargs.items() if name not in taken | {"revision", "subfolder"}
    }
    for_base = {"revision": config.revision, **task_of(config), **for_base}
    model = _read_as(_base_class(config, path), base, **for_base)
    try:
        adapted = PeftModel.from_pretrained(
            model, path, **{name: value for name, value in kwargs.items() if name in taken | set(hub)}
        )
    except SafetensorError as error:
        raise CheckpointError(f"the weights in {path} are damaged or cut short: {error}") from error
    return adapted, {"path": base, "revision": config.revision}


def _base_class(config: Any, path: str | Path) -> Any:
    name = (config.auto_mapping or {}).get("base_model_class") or TASKS.get(config.task_type)
    if name is None or not hasattr(transformers, name):
        raise CheckpointError(
            f"{path} names {name} as the class of its base model, which is none of transformers: load that model, "
            f"then PeftModel.from_pretrained(model, {str(path)!r}) and crisp.restore on the result"
        )
    return getattr(transformers, name)


def _read_as(cls: Any, path: str | Path, **kwargs: Any) -> PreTrainedModel:
    if not issubclass(cls, PreTrainedModel):
        return read_model(cls, path, use_safetensors=True, **kwargs)
    model = read_model(_expecting_learned(cls), path, use_safetensors=True, **kwargs)
    model.__class__ = cls
    return model


def read_config(path: str | Path, **kwargs: Any) -> transformers.PreTrainedConfig:
    """The configuration at `path`; CheckpointError says what is wrong with a folder that has none."""
    folder = Path(path) / kwargs.get("subfolder", "")
    if (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{path} is a PEFT adapter, expected a whole model: "
            f"crisp_attention.load({str(path)!r}).merge_and_unload().save_pretrained(...) writes one"
        )
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        other = next((words for name, words in OTHERS.items() if (folder / name).is_file()), "")
        raise CheckpointError(
            f"{path} is not a model: expected config.json and model.safetensors, found {inside}{other}"
        )
    if folder.is_file():
        raise CheckpointError(f"{path} is a file; a model is a folder with config.json and model.safetensors")
    if not folder.exists() and (folder.is_absolute() or str(path).startswith(".")):
        raise CheckpointError(f"no such folder: {path}")
    if (folder / "config.json").is_file() and _of_a_run(folder / "config.json"):
        raise CheckpointError(
            f"{path} is the folder of a run that holds no model: the run has not finished, "
            f"or it kept no model"
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
    # a dense model has no such parameters, and would report them as unexpected
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
