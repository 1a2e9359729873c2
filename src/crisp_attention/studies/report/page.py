"""What the page of one study shows, put together for its template."""

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from crisp_attention.drawing.svg import inline
from crisp_attention.errors import DataError
from crisp_attention.studies.analysis import Analysis, Line
from crisp_attention.studies.report.examples import Example, read_examples
from crisp_attention.studies.report.figures import Picture
from crisp_attention.studies.report.tables import MEANS, mean_of
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.report.verdicts import answer, sentences
from crisp_attention.studies.study import Study

MOST_FLIPS = 20


class Flip(NamedTuple):
    """An example whose prediction changes; without its text where the data set cannot be read."""

    row: Any
    example: Example | None


def page(analysis: Analysis, main: list[Picture], curves: list[Picture], heads: list[Picture]) -> str:
    """The HTML of the report."""
    flips, no_texts = _flips(analysis)
    return render(
        "report.html",
        **facts(analysis),
        main=_inline(main),
        curves=_inline(curves),
        heads=_inline(heads),
        flips=flips,
        no_texts=no_texts,
        names={each.id: each.label for each in analysis.study.configurations},
    )


def facts(analysis: Analysis) -> dict[str, Any]:
    """What the page says as well as the summary."""
    study = analysis.study
    return {
        "analysis": analysis,
        "study": study,
        "answer": answer(analysis),
        "verdicts": sentences(analysis),
        "lines": [
            (line, {name: mean_of(line, name) for name in ("accuracy", *MEANS)}) for line in analysis.lines
        ],
        "examples": _examples(analysis),
        "command": shlex.join(study.command),
        "options": _said(study),
        "published": _published(analysis),
    }


def _said(study: Study) -> dict[str, str]:
    """The options that were given or have a value, as text."""
    given = {name: value for name, value in study.options.items() if value not in (None, [], (), "")}
    return {
        name.replace("_", " "): " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in given.items()
    }


def _inline(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """The pictures with their SVG, as a template takes them."""
    return [
        each._asdict() | {"svg": Markup(inline(each.svg, f"{each.title}. {each.caption}"))}
        for each in pictures
    ]


def _examples(analysis: Analysis) -> int:
    """How many examples stand behind each accuracy; 0 without runs."""
    study = analysis.study
    runs = [run for each in study.configurations for run in study.finished(each)]
    return int(runs[0].metrics[analysis.split]["examples"]) if runs else 0


def _published(analysis: Analysis) -> list[tuple[dict[str, Any], Line | None, float | None]]:
    """Each published number beside our line of the same label or method, and that line's mean accuracy."""
    lines = {each.configuration.label: each for each in analysis.lines}
    lines |= {each.configuration.method: each for each in analysis.lines}
    found = [(row, lines.get(row["label"])) for row in (analysis.study.published or {}).get("rows", [])]
    return [(row, line, mean_of(line, "accuracy") if line else None) for row, line in found]


def _flips(analysis: Analysis) -> tuple[list[Flip], str]:
    table = analysis.flips[analysis.flips["flips"] > 0].head(MOST_FLIPS)
    rows = list(table.itertuples(index=False))
    if not rows:
        return [], ""
    indices, labels = table["index"].tolist(), table["label"].tolist()
    try:
        examples = read_examples(analysis.study, analysis.split, indices, labels)
    except DataError as error:
        return [Flip(row, None) for row in rows], str(error)
    return [Flip(*pair) for pair in zip(rows, examples, strict=True)], ""
