"""`crisp view`: from options to one self-contained HTML page with its data, style and script."""

import json
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from rich.console import Console
from transformers import PreTrainedModel

from crisp_attention.drawing.palette import style_sheet
from crisp_attention.errors import OptionError
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.method import Method
from crisp_attention.models.sparse_model import SparseModel, is_sparse
from crisp_attention.view.capture import Layer, Seen, capture, layers_of
from crisp_attention.view.options import ViewOptions
from crisp_attention.view.reading import Reading, chosen, read

SCRIPTS = ("data.js", "grid.js", "panel.js", "main.js")
NOT_VALID = 65535
# characters in the data that could end the script element, or be read as markup
ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}


def page(title: str, data: dict[str, Any]) -> str:
    """The HTML of a page that shows `data`; text in it stays text."""
    folder = files("crisp_attention.view") / "template"

    def template(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    style, script = style_sheet() + template("view.css"), "".join(template(name) for name in SCRIPTS)
    return Template(template("view.html")).substitute(
        title=escape(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=json.dumps(data, allow_nan=False).translate(ESCAPES),  # ASCII, so no U+2028 either
    )


def layer_data(layer: Layer) -> dict[str, Any]:
    """A layer as the page knows it."""
    return {"number": layer.number, "name": layer.name, "heads": layer.heads}


def seen_data(seen: Seen) -> dict[str, Any]:
    """A layer with a method as the page knows it: 16 bits for each weight, one for kept or not."""
    weights = np.where(seen.valid, np.rint(seen.weights * (NOT_VALID - 1)), NOT_VALID)
    return {
        "method": seen.method.spec,
        "weights": _base64(weights.astype("<u2").tobytes()),
        "kept": _base64(np.packbits(seen.kept, bitorder="little").tobytes()),
        "sparsity": seen.sparsity,
        "kept_mass": seen.kept_mass,
    }


def page_bytes(layers: list[Layer], tokens: int, methods: int) -> int:
    """About how large a page's data is."""
    return int(sum(layer.heads for layer in layers) * tokens**2 * methods * (2 + 1 / 8) * 4 / 3)


def _base64(raw: bytes) -> str:
    return b64encode(raw).decode()


def _hash(text: str) -> str:
    return f"sha256-{_base64(sha256(text.encode()).digest())}"


MAX_BYTES = 24_000_000  # a browser opens this at once; a large model with a long text has ten times as much


def run_view(options: ViewOptions, notes: Console) -> None:
    """Write the page and print where it is; notes go to `notes`.

    Raises CheckpointError if the model cannot be read, OptionError if an option does not fit it.
    """
    methods = chosen(options.method)
    if options.output.is_dir():
        raise OptionError(f"output {options.output} is a folder; expected a file", "output")
    reading = read(options)
    layers = layers_of(reading.model, reading.batch)
    opened = _opened(options, layers)
    data = _data(options.model, reading, methods, layers, opened) | {
        "open": {"layer": options.layer, "head": options.head}
    }
    for note in data["notes"]:
        notes.print(note, markup=False, highlight=False, soft_wrap=True)
    title = f"{reading.texts[0][:60]} – attention of {options.model}"
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page(title, data), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"output {options.output}: {error.strerror}", "output") from error
    Console().print(
        f"{options.output}: {_count(reading.tokens, 'token')}, {_count(data['layers'], 'layer')}, "
        f"{_count(data['methods'], 'method')}, {options.output.stat().st_size / 1e6:.1f} MB",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _count(things: list[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def _opened(options: ViewOptions, layers: list[Layer]) -> Layer:
    numbers = [layer.number for layer in layers]
    if options.layer not in numbers:
        raise OptionError(f"layer must be in {min(numbers)} to {max(numbers)}, got {options.layer}", "layer")
    opened = layers[numbers.index(options.layer)]
    if not 0 <= options.head < opened.heads:
        raise OptionError(f"head must be in 0 to {opened.heads - 1}, got {options.head}", "head")
    return opened


def _data(
    name: str, reading: Reading, methods: list[Method], layers: list[Layer], opened: Layer
) -> dict[str, Any]:
    asked: list[tuple[str, Method | None]] = [(method.spec, method) for method in methods]
    if is_sparse(reading.model):
        own = _own(reading.model)
        asked = [("this model’s own", None), *(pair for pair in asked if pair[1] != own)]
    notes, held = list(reading.notes), layers
    if (size := page_bytes(layers, len(reading.tokens), len(asked))) > MAX_BYTES:
        held = [opened]
        notes.append(
            f"All {len(layers)} layers would take {size / 1e6:,.0f} MB: the page holds only layer {opened.number}, "
            f"the one that was chosen."
        )
    shown = []
    for title, method in asked:
        try:
            seen = capture(reading.model, reading.batch, method, layers, held)
        except OptionError:
            raise
        except (NotImplementedError, TypeError, ValueError) as error:
            notes.append(f"Left out, as it does not fit this model: {title} ({error}).")
        else:
            shown.append(
                {"label": title, "own": method is None, "layers": [seen_data(each) for each in seen]}
            )
    if not shown:
        raise OptionError(f"no method fits this model: {notes[-1]}")
    return {
        "model": name,
        "architecture": type(reading.model).__name__,
        "texts": reading.texts,
        "tokens": reading.tokens,
        "layers": [layer_data(layer) for layer in held],
        "methods": shown,
        "notes": notes,
    }


def _own(model: PreTrainedModel) -> LayerMethod | None:
    """The one method of all layers of a sparse model, active in evaluation; None if they differ."""
    active = {settings.active_method(training=False) for settings in SparseModel.of(model).settings}
    return active.pop() if len(active) == 1 else None
