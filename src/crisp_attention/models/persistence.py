"""Loading models that were saved sparse, and restoring their sparsity."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from crisp_attention.errors import CheckpointError
from crisp_attention.kernels.dispatch import AUTO, check_backend
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.apply import activate
from crisp_attention.models.host import AttentionLayer, Host, host_of, hosts
from crisp_attention.models.notice import SparseCheckpointLoadedDense, restoring
from crisp_attention.models.parameters import missing_parameters
from crisp_attention.models.rollback import all_or_nothing, everything
from crisp_attention.models.selection import by_name, fitting
from crisp_attention.models.settings import settings_on
from crisp_attention.models.sparse_model import SparseModel

Model = TypeVar("Model", bound=nn.Module)
# what the config of a model with compressed weights says in place of a quantization, and where it has the pattern of
# zeros of a pruned one
COMPRESSED, PRUNED = "crisp_blocks", "crisp_pruned"


def restore(model: Model, *, backend: str = AUTO) -> Model:
    """Make a model sparse again, in place, from the settings in its config.

    Learned parameters are read from where the model was loaded. A PEFT model gets the settings of its active
    adapter, if it was saved with any.

    Parameters
    ----------
    model
        A model that was loaded without `crisp.load` from a checkpoint of a sparse one.
    backend
        As in `sparsify`.

    Returns
    -------
    The same model.

    Raises
    ------
    ValueError
        If there are no settings, they are damaged or do not fit the model's layers, or learned parameters are missing.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> twin = BertModel(crisp.sparsify(model, crisp.TopK(sparsity=0.8)).config)  # its settings lie in the config
    >>> crisp.is_sparse(twin), crisp.is_sparse(crisp.restore(twin))
    (False, True)
    """
    return restore_from(model, backend, {})


def load(path: str | Path, *, backend: str = AUTO, **kwargs: Any) -> Any:
    """Load a model, sparse if it was saved sparse, as the class it was saved from.

    Only safetensors files are read, nothing is unpickled. Warns if the checkpoint holds no settings, so that the
    model is dense.

    Parameters
    ----------
    path
        A folder, a run's folder or a hub id. Of a PEFT adapter, its base model is loaded and the PeftModel
        returned, for inference unless `is_trainable=True`.
    backend
        As in `sparsify`.
    kwargs
        What `from_pretrained` takes.

    Raises
    ------
    CheckpointError
        If the folder is not a model or a file in it is damaged.
    TypeError
        For `use_safetensors` and `output_loading_info`.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     crisp.sparsify(model, crisp.TopK(sparsity=0.8)).save_pretrained(folder)
    ...     crisp.is_sparse(crisp.load(folder))
    True
    """
    for refused in ("use_safetensors", "output_loading_info"):
        if refused in kwargs:
            raise TypeError(f"crisp.load does not take {refused}: it reads safetensors and returns the model")
    with restoring():
        model, place = _read(path, kwargs)
    host, root = host_of(model)
    try:
        recorded = host.read(model, root)
    except ValueError as error:
        raise CheckpointError(f"cannot make the model in {path} sparse again: {error}") from error
    if recorded is not None:
        return restore_from(model, backend, place)
    config = getattr(model, "config", None)
    quantized: Any = getattr(config, "quantization_config", None) or {}
    if PRUNED in vars(config or object) or quantized.get("quant_method") == COMPRESSED:
        return model  # it was made smaller, and attends densely
    message = f"{path} holds no Crisp settings: the model is dense"
    warnings.warn(message, SparseCheckpointLoadedDense, stacklevel=2)
    return model


def _read(path: str | Path, given: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    for host in hosts():
        if (found := host.load(path, given)) is not None:
            return found
    raise CheckpointError(
        f"{path} holds no model of {' or '.join(dict.fromkeys(host.library for host in hosts()))}"
    )


def is_recorded(model: nn.Module) -> bool:
    """Whether `restore` finds settings in the model's config. Raises ValueError for damaged ones."""
    host, root = host_of(model)
    return host.read(model, root) is not None


def read_fitted(model: nn.Module) -> None:
    """Give a sparse model the fitted parameters of its methods that its checkpoint holds; others stay missing.

    Raises ValueError if the checkpoint holds them in other shapes.
    """
    host, root = host_of(model)
    methods = [
        (layer, method)
        for layer in SparseModel.of(model).layers
        if (method := settings_on(layer).method) is not None
    ]
    missing = [
        (layer, {name: each for name, each in wanted.items() if not each.trained})
        for layer, wanted in missing_parameters(host, methods)
    ]
    host.saved(model, root, missing, {})()


def restore_from(model: Model, backend: str, place: Mapping[str, Any]) -> Model:
    """`restore` with the place of the checkpoint, as `Host.load` returns it."""
    check_backend(backend)
    host, root = host_of(model)
    if (recorded := host.read(model, root)) is None:
        raise ValueError(f"the config of this {type(root).__name__} holds no Crisp settings to restore")
    methods, phase = recorded
    chosen = fitted_to(host, root, methods)
    fill = host.saved(model, root, missing_parameters(host, chosen), place)
    host.check_savable(root)
    with all_or_nothing(everything(host, root)):
        given = {layer.index: method for layer, method in chosen}
        sparse = activate(host, root, given, phase, backend, host.dense_tokens(root))
        fill()
        host.erase(root)
        sparse.write()
    return model


def fitted_to(
    host: Host, root: nn.Module, methods: Mapping[str, LayerMethod]
) -> list[tuple[AttentionLayer, LayerMethod]]:
    """The layers of a model that recorded methods, by name, are for. Raises ValueError if one does not fit."""
    found = host.layers(root)
    named = [(by_name(found, name), method) for name, method in methods.items()]
    return [(layer, fitting(host, method, layer)) for layer, method in named]
