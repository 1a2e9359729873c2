"""Budgets by layer and head, in a file: a method for every layer and head."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crisp_attention.methods.heads import LayerMethod, PerHead, layer_method
from crisp_attention.methods.method import as_method

VERSION = 1


@dataclass(frozen=True)
class Budgets:
    """Methods by layer name, as `Profile.recommend` gives them and `crisp.sparsify` takes them.

    Parameters
    ----------
    methods
        By the name of a layer, a method for the layer, or a `PerHead` with one for each of its heads.
    expected
        What they keep on the data they come from, in plain values.

    Raises
    ------
    ValueError
        If there is no method.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> crisp.Budgets({"encoder.layer.0.attention": crisp.TopK(0.5)}).methods["encoder.layer.0.attention"].spec
    'topk:sparsity=0.5'
    """

    methods: Mapping[str, LayerMethod]
    expected: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("budgets need a method for at least one layer, got none")
        methods = {n: m if isinstance(m, PerHead) else as_method(m) for n, m in self.methods.items()}
        object.__setattr__(self, "methods", methods)

    def save(self, path: str | Path) -> None:
        """Write the budgets as JSON; `crisp.budgets` reads them."""
        data = {
            "version": VERSION,
            "expected": dict(self.expected),
            "layers": {name: method.to_dict() for name, method in self.methods.items()},
        }
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def budgets(path: str | Path) -> Budgets:
    """Read budgets that `Budgets.save`, or the command `crisp profile`, wrote.

    Parameters
    ----------
    path
        The JSON file.

    Returns
    -------
    Budgets
        A method for every layer and head, and what they are expected to keep.

    Raises
    ------
    ValueError
        Naming the file, if it holds no budgets.

    Examples
    --------
    >>> import tempfile
    >>> import crisp_attention as crisp
    >>> written = crisp.Budgets({"layer.0": crisp.TopK(0.5)})
    >>> with tempfile.NamedTemporaryFile(suffix=".json") as file:
    ...     written.save(file.name)
    ...     crisp.budgets(file.name) == written
    True
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read budgets from {path}: {error}") from error
    data = data if isinstance(data, dict) else {}
    layers, expected = data.get("layers"), data.get("expected") or {}
    known = data.get("version") == VERSION and isinstance(expected, dict)
    if not known or not isinstance(layers, dict) or not layers:
        raise ValueError(
            f"{path} holds no budgets of version {VERSION}, as Budgets.save and `crisp profile` write them"
        )
    try:
        methods = {name: layer_method(each) for name, each in layers.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Budgets(methods, expected)
