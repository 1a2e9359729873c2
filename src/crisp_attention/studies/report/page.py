"""The contents of a study's page, with the examples behind its numbers, for the template."""

import io
import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from datasets import Dataset
from markupsafe import Markup

from crisp_attention.drawing.svg import inline
from crisp_attention.errors import DataError
from crisp_attention.runs.data import load_task
from crisp_attention.runs.data.images import WHITE, as_rgb, survey
from crisp_attention.runs.task import Task
from crisp_attention.runs.treatment import ModelTreatment
from crisp_attention.studies.analysis import Analysis, Line, answer, correction, statements
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.report.figures import Picture
from crisp_attention.studies.report.tables import MEANS
from crisp_attention.studies.report.templates import render

MOST_LETTERS = 300
MOST_PIXELS = 64
MOST_FLIPS = 20


class Example(NamedTuple):
    """What the page shows of an example: its text, or its picture as a data URI, and its class."""

    text: str
    picture: str
    label: str


def read_examples(
    study: StudyFolder, split: str, indices: Sequence[int], labels: Sequence[int]
) -> list[Example]:
    """The examples with these indices, from the data set on which the study was made.

    Raises DataError if the data set, or one of the images, cannot be read, or the labels there are others.
    """
    task = load_task(replace(study.plan.data, train_examples=None))
    if split not in task.splits:
        raise DataError(f"expected a labelled {split} split; found {', '.join(task.splits)}")
    rows = task.splits[split]
    places = {index: place for place, index in enumerate(rows["index"])}
    white = WHITE
    if task.image_column is not None:
        wanted = rows.select([places[index] for index in indices if index in places])
        white = survey({split: wanted}, task.image_column).white
    return [
        _example(task, rows, places.get(index), index, label, white)
        for index, label in zip(indices, labels, strict=True)
    ]


def _example(task: Task, rows: Dataset, place: int | None, index: int, label: int, white: int) -> Example:
    if place is None:
        raise DataError(f"expected an example {index}; the split has {len(rows):,} now")
    row = rows[place]
    if row["labels"] != label:
        raise DataError(f"expected label {label} for example {index}; found {row['labels']}: other data")
    name = task.label_names[label]
    if task.image_column is not None:
        return Example("", _data_uri(row[task.image_column], white), name)
    text = " ⏎ ".join(str(row[column]) for column in task.text_columns)
    cut = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
    return Example(cut, "", name)


def _data_uri(image: Any, white: int) -> str:
    small = image.convert("L") if image.mode in ("1", "L") else as_rgb(image, white)
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    raw = io.BytesIO()
    small.save(raw, format="PNG")
    return "data:image/png;base64," + b64encode(raw.getvalue()).decode()


class Flip(NamedTuple):
    """An example whose prediction changes; without its text where the data set cannot be read."""

    row: Any
    example: Example | None


def page(
    analysis: Analysis,
    main: list[Picture],
    curves: list[Picture],
    heads: list[Picture],
    layers: list[Picture],
) -> str:
    """The HTML of the report."""
    flips, no_texts = _flips(analysis)
    return render(
        "report.html",
        **facts(analysis),
        main=_inline(main),
        curves=_inline(curves),
        heads=_inline(heads),
        layers=_inline(layers),
        flips=flips,
        no_texts=no_texts,
        names={each.id: each.label for each in analysis.study.configurations},
    )


def facts(analysis: Analysis) -> dict[str, Any]:
    """What the page and the summary both show.

    zeros: what treatments of the model itself set to zero, such as weights; empty without any.
    of_attention: whether attention is sparse in some configuration.
    """
    study = analysis.study
    treatments = [each.treatment for each in study.configurations if not each.is_dense]
    of_models = [each for each in treatments if isinstance(each, ModelTreatment)]
    command = study.command[0] if len(study.command) == 1 else shlex.join(study.command)
    return {
        "analysis": analysis,
        "study": study,
        "unit": Unit(analysis.metric),
        "zeros": " and ".join(dict.fromkeys(each.words for each in of_models)),
        "of_attention": not of_models or len(of_models) < len(treatments),
        "answer": answer(analysis),
        "verdicts": [
            each for each in statements(analysis) if each.verdict is not None and each.baseline.is_dense
        ],
        "corrected": correction(analysis),
        "lines": [(line, {name: line.mean(name) for name in ("score", *MEANS)}) for line in analysis.lines],
        "examples": len(analysis.labels),
        "command": command,
        "options": shared_options(study),
        "published": _published(analysis),
    }


def shared_options(study: StudyFolder) -> dict[str, str]:
    """The options that all runs of the study share and that are not defaults, as text."""
    plan, recipes = study.plan, [each.recipe for each in study.configurations]
    found: dict[str, Any] = {"model": plan.model, "dataset": plan.data.source, "metric": plan.metric}
    found |= {name: value for name, value in asdict(plan.data).items() if name != "source"}
    for name, value in asdict(recipes[0]).items():
        if name != "report_to" and all(getattr(each, name) == value for each in recipes):
            found[name] = [f"{key}={one}" for key, one in value.items()] if name == "training" else value
    return {
        name.replace("_", " "): " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in found.items()
        if value not in (None, [], (), "")
    }


def _inline(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """The pictures with their SVG, as a template takes them."""
    return [
        each._asdict() | {"svg": Markup(inline(each.svg, f"{each.title}. {each.caption}"))}
        for each in pictures
    ]


def _published(analysis: Analysis) -> list[tuple[dict[str, Any], Line | None, float | None]]:
    """Each published number with our line of the same label or method, and that line's mean score."""
    lines = {each.configuration.label: each for each in analysis.lines}
    lines |= {each.configuration.spec: each for each in analysis.lines}
    found = [(row, lines.get(row["label"])) for row in (analysis.study.published or {}).get("rows", [])]
    return [(row, line, line.mean("score") if line else None) for row, line in found]


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
