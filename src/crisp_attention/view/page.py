"""The page: one self-contained HTML file with its data, style and script, which loads nothing else."""

import json
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from crisp_attention.drawing.palette import style_sheet
from crisp_attention.view.capture import Layer, Seen

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
