"""Saving and loading sparse models that have no way of their own: weights in safetensors, settings in JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from crisp_attention.errors import CheckpointError
from crisp_attention.files import check_ours, replacing
from crisp_attention.kernels.dispatch import AUTO, check_backend
from crisp_attention.methods.part import Shape
from crisp_attention.models.apply import activate
from crisp_attention.models.host import ANY, host_of, hosts
from crisp_attention.models.persistence import fitted_to
from crisp_attention.models.record import parse
from crisp_attention.models.rollback import all_or_nothing
from crisp_attention.models.sdpa.finding import SEEN, Seen
from crisp_attention.models.sdpa.host import unwrapped
from crisp_attention.models.settings import settings_of
from crisp_attention.models.sparse_model import STATE, SparseModel

WEIGHTS, SETTINGS = "model.safetensors", "crisp.json"
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, folder: str | Path) -> None:
    """Save the weights and the sparsity of a model whose library has no way to save it.

    Writes `model.safetensors`, with what methods learned, and `crisp.json`; nothing is pickled, and the class of the
    model is not recorded. An earlier save in the folder is replaced, as a whole or not at all.

    Parameters
    ----------
    model
        A module of your own, of torch, timm or torchvision, sparse, with sparse parts, or dense.
    folder
        A new or empty folder, or that of an earlier save.

    Raises
    ------
    TypeError
        For models of transformers and diffusers, which have `save_pretrained`; a model of your own may hold some.
    ValueError
        If a method cannot be saved, as its class has no name; if the model is part of a larger sparse one.
    OptionError
        If the folder holds other files or cannot be written.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from tempfile import TemporaryDirectory
    >>> from torch import nn
    >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    >>> with TemporaryDirectory() as folder:
    ...     crisp.save(crisp.sparsify(model, crisp.TopK(sparsity=0.8)), folder)
    ...     twin = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    ...     crisp.is_sparse(crisp.load_into(twin, folder))
    True
    """
    root = _plain(model)
    parts = {name: part.record() for name, part in parts_of(root).items()}
    if not parts and any(settings_of(module) for module in root.modules()):
        raise ValueError(
            f"this {type(root).__name__} is part of a larger sparse model: save that one, or call crisp.sparsify on it"
        )
    for name, value in root.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} is no tensor and cannot be saved in safetensors, got {type(value).__name__}"
            )
    seen = {
        name: asdict(each) for name, module in root.named_modules() if (each := getattr(module, SEEN, None))
    }
    settings = json.dumps({"parts": parts, "seen": seen}, indent=2, allow_nan=False)
    with replacing(Path(folder), _check) as new:
        save_model(root, str(new / WEIGHTS))
        (new / SETTINGS).write_text(settings, encoding="utf-8")


def load_into(model: Model, folder: str | Path, *, backend: str = AUTO) -> Model:
    """Give a model the weights and the sparsity that `crisp.save` saved, in place.

    Parameters
    ----------
    model
        A model of the class that was saved, with layers of the same names and sizes; sparse or dense.
    folder
        What `crisp.save` wrote.
    backend
        As in `crisp.sparsify`.

    Returns
    -------
    The same model.

    Raises
    ------
    CheckpointError
        If the folder holds no such model, or weights or layers do not fit; the model is then what it was.
    TypeError
        For models of transformers and diffusers.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from torch import nn
    >>> crisp.load_into(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 1), "nowhere")
    Traceback (most recent call last):
    crisp_attention.errors.CheckpointError: nowhere holds no model that crisp.save saved: expected crisp.json
    """
    check_backend(backend)
    place = Path(folder)
    root = _plain(model)
    saved = _read(place)
    held = {id(each): each for module in root.modules() for host in hosts() for each in host.held(module)}
    with all_or_nothing([*root.modules(), *held.values()]):
        try:
            if extra := [name for name in parts_of(root) if name not in saved["parts"]]:
                raise ValueError(
                    f"{extra[0] or 'it'} is sparse and was saved dense: call crisp.densify on it first"
                )
            _mark(root, saved["seen"])
            for name, settings in saved["parts"].items():
                host, part = host_of(_submodule(root, name))
                methods, phase = parse(settings, str(place / SETTINGS))
                chosen = {layer.index: method for layer, method in fitted_to(host, part, methods)}
                activate(host, part, chosen, phase, backend).write()
            _check_weights(root, place / WEIGHTS)
            load_model(root, str(place / WEIGHTS))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"cannot load {place} into this {type(model).__name__}: {error}") from error
    return model


def parts_of(root: nn.Module) -> dict[str, SparseModel]:
    """The sparse models in `root`, by their names there: "" for itself."""
    states = {name: (vars(each)[STATE], each) for name, each in root.named_modules() if STATE in vars(each)}
    return {name: SparseModel(state.host, each) for name, (state, each) in states.items()}


def _plain(model: nn.Module) -> nn.Module:
    """The model without wrappers. Raises TypeError if its library saves it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {model!r}")
    root = unwrapped(model)
    for host in hosts():
        if host.name != ANY and host.roots(root) == [root]:
            raise TypeError(
                f"{type(root).__name__} is a model of {host.library}: use its save_pretrained, and crisp.load"
            )
    return root


def _submodule(root: nn.Module, name: str) -> nn.Module:
    try:
        return root.get_submodule(name)
    except AttributeError:
        raise ValueError(f"it has no module {name}") from None


def _read(place: Path) -> dict[str, Any]:
    file = place / SETTINGS
    if not file.is_file():
        raise CheckpointError(f"{place} holds no model that crisp.save saved: expected {SETTINGS}")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        # a model could be sparse as a whole only before
        parts = saved["parts"] if "parts" in saved else {"": saved["settings"]} if saved["settings"] else {}
        seen = {name: {**each, "shape": Shape(*each["shape"])} for name, each in saved["seen"].items()}
        if not all(
            isinstance(each, int) for one in seen.values() for each in (*one["shape"], one["queries"])
        ):
            raise ValueError("heads, widths and lengths must be whole numbers")
        return {"parts": dict(parts), "seen": {name: Seen(**each) for name, each in seen.items()}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _mark(root: nn.Module, seen: Mapping[str, Seen]) -> None:
    modules = dict(root.named_modules())
    for name, each in seen.items():
        if name not in modules:
            raise ValueError(f"it has no module {name}")
        setattr(modules[name], SEEN, each)


def _check_weights(root: nn.Module, file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as weights:
            saved = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    state = root.state_dict()
    own = {name: tuple(each.shape) for name, each in state.items()}
    for name, shape in saved.items():
        if own.get(name) != shape:
            raise ValueError(
                f"{name} was saved with the shape {shape}, the model's is {own.get(name, 'not there')}"
            )
    tied: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, each in state.items():
        tied.setdefault((each.data_ptr(), own[name]), []).append(name)
    for names in tied.values():
        there = [name for name in names if name in saved]
        if not there:
            raise ValueError(f"{names[0]} was not saved")
        if len(there) > 1 and state[there[0]].numel():
            raise ValueError(
                f"{' and '.join(there)} are one tensor in this model and were two when it was saved"
            )


def _check(folder: Path) -> None:
    check_ours(folder, "a saved model", {WEIGHTS, SETTINGS}.__contains__, "folder")
