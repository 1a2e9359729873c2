"""Matplotlib's figures as SVG: a file of its own, or a part of a page that takes the page's colours and font."""

import io
import re
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from crisp_attention.drawing.palette import PANEL, VARIABLES

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', sans-serif"
REFERENCE = re.compile(r"^#([\w.-]+)$|^url\(#([\w.-]+)\)$")
ElementTree.register_namespace("", SVG)


def drawn(figure: Figure, name: str) -> ElementTree.Element:
    """The figure, transparent, without inline styles, which a strict page ignores.

    Its ids start with `name`, so that a page can hold several.
    """
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    for parent in root.iter():
        for child in [each for each in parent if each.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata")]:
            parent.remove(child)
    root.set("stroke-linejoin", "round")  # what the style element said
    for element in root.iter():
        for declaration in filter(None, element.attrib.pop("style", "").split(";")):
            key, value = declaration.split(":", 1)
            if key.strip() != "font-family":
                element.set(key.strip(), value.strip())
        if HREF in element.attrib:
            element.set("href", element.attrib.pop(HREF))
    _rename(root, name)
    return root


def standalone(root: ElementTree.Element) -> str:
    """The text of an SVG file, on white."""
    white = ElementTree.Element(f"{{{SVG}}}rect", {"width": "100%", "height": "100%", "fill": PANEL})
    page = ElementTree.Element(root.tag, root.attrib | {"font-family": FONTS})
    page.extend([white, *root])
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(page, encoding="unicode") + "\n"


def inline(root: ElementTree.Element, label: str) -> str:
    """An svg element for a page, read aloud as `label`; its colours are the variables of the page's style."""
    page = ElementTree.fromstring(ElementTree.tostring(root))
    for size in ("width", "height"):
        del page.attrib[size]
    page.attrib |= {"role": "img", "aria-label": label}
    for element in page.iter():
        for key, value in element.attrib.items():
            element.set(key, VARIABLES.get(value, value))
    return ElementTree.tostring(page, encoding="unicode")


def _rename(root: ElementTree.Element, name: str) -> None:
    """Put `name` before the ids that are referred to, and drop the others."""
    used = set()
    for element in root.iter():
        for key in ("href", "clip-path"):
            if found := REFERENCE.match(element.get(key, "")):
                used.add(found[1] or found[2])
                element.set(key, element.attrib[key].replace("#", f"#{name}-"))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")
