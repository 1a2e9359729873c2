"""Pages and summaries from templates; whatever comes from data stays text."""

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crisp_attention.drawing.palette import style_sheet
from crisp_attention.drawing.style import parts
from crisp_attention.studies import numbers

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#&~$])")


REPORT = "crisp_attention.studies.report"


def render(name: str, *, package: str = REPORT, **values: Any) -> str:
    """The template filled in. In a page, values are escaped as HTML; elsewhere nothing is.

    The folder `templates` of the package is looked into before that of the reports, whose base and parts it may use.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(each) for each in dict.fromkeys((package, REPORT))]),
        autoescape=lambda template: template is not None and template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = _markdown
    environment.filters["parts"] = parts
    environment.filters["capitalized"] = lambda text: text[:1].upper() + text[1:]
    style = style_sheet() + environment.get_template("report.css").render()
    digest = b64encode(sha256(style.encode()).digest()).decode()
    return environment.get_template(name).render(
        style=Markup(style), style_hash=f"sha256-{digest}", numbers=numbers, **values
    )


def _markdown(text: object) -> str:
    """One line of text with its markup escaped."""
    return MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))
