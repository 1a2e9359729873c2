"""Saving and loading sparse models that have no way of their own: weights in safetensors, settings in JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from crisp_attention.errors import CheckpointError
from crisp_attention.files import check_ours, replacing
from crisp_attention.kernels.dispatch import AUTO, check_backend
from crisp_attention.methods.part import Shape
from crisp_attention.models.apply import activate
from crisp_attention.models.host import Host, host_of
from crisp_attention.models.record import parse
from crisp_attention.models.rollback import all_or_nothing
from crisp_attention.models.sdpa.finding import SEEN, Seen
from crisp_attention.models.sdpa.host import AnyModule, unwrapped
from crisp_attention.models.selection import by_name, fitting
from crisp_attention.models.sparse_model import SparseModel

WEIGHTS, SETTINGS = "model.safetensors", "crisp.json"
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, folder: str | Path) -> None:
    """Save the weights and the sparsity of a model whose library has no way to save it.

    Writes `model.safetensors`, with what methods learned, and `crisp.json`; nothing is pickled, and the class of the
    model is not recorded. An earlier save in the folder is replaced, as a whole or not at all.

    Parameters
    ----------
    model
        A module of your own, of torch, timm or torchvision, sparse or dense.
    folder
        A new or empty folder, or that of an earlier save.

    Raises
    ------
    TypeError
        For models of transformers and diffusers, which have `save_pretrained`.
    ValueError
        If a method cannot be saved, as its class has no name.
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
    _, root = _plain(model)
    sparse = SparseModel.find(model)
    seen = {
        name: asdict(each) for name, module in root.named_modules() if (each := getattr(module, SEEN, None))
    }
    settings = json.dumps({"settings": sparse and sparse.record(), "seen": seen}, indent=2, allow_nan=False)
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
    saved = _read(place)
    with all_or_nothing(list(model.modules())):
        try:
            _mark(unwrapped(model), saved["seen"])
            host, root = _plain(model)
            if saved["settings"] is None:
                if SparseModel.find(model):
                    raise ValueError("the saved model is dense; call crisp.densify on this one first")
            else:
                methods, phase = parse(saved["settings"], str(place / SETTINGS))
                found = host.layers(root)
                named = [(by_name(found, name), method) for name, method in methods.items()]
                chosen = {layer.index: fitting(host, method, layer) for layer, method in named}
                activate(host, root, chosen, phase, backend).write()
            _check_weights(root, place / WEIGHTS)
        except ValueError as error:
            raise CheckpointError(f"cannot load {place} into this {type(model).__name__}: {error}") from error
    load_model(root, str(place / WEIGHTS))
    return model


def _plain(model: nn.Module) -> tuple[Host, nn.Module]:
    host, root = host_of(model)
    if type(host) is not AnyModule:
        raise TypeError(
            f"{type(root).__name__} is a model of {host.name}: use its save_pretrained, and crisp.load"
        )
    return host, root


def _read(place: Path) -> dict[str, Any]:
    file = place / SETTINGS
    if not file.is_file():
        raise CheckpointError(f"{place} holds no model that crisp.save saved: expected {SETTINGS}")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        seen = {name: {**each, "shape": Shape(*each["shape"])} for name, each in saved["seen"].items()}
        return {"settings": saved["settings"], "seen": {name: Seen(**each) for name, each in seen.items()}}
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
    own = {name: tuple(each.shape) for name, each in root.state_dict().items()}
    for name, shape in saved.items():
        if own.get(name) != shape:
            raise ValueError(
                f"{name} was saved with the shape {shape}, the model's is {own.get(name, 'not there')}"
            )


def _check(folder: Path) -> None:
    check_ours(folder, "a saved model", {WEIGHTS, SETTINGS}.__contains__, "folder")
