"""A study with traps in every text, and its report, for the tests of `crisp report`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from crisp_attention.studies.folder import Addition, StudyFolder
from tests.studies.studies import World, make_study

HOSTILE = "<script>window.hit=1</script><img src=x> \"quotes' </style> \u2028 &lt; 🙂 שלום {{ 7*7 }} |a|`b`"
NAMES = ("<b>negative</b>", "positive & good")
ACCURACIES = {
    "dense": 0.85,
    "topk:sparsity=0.5": 0.90,
    "topk:sparsity=0.8": 0.85,
    "window:width=9+topk:sparsity=0.5": 0.84,
    "random:sparsity=0.8": 0.70,
}
FAILED = ("window:width=9+topk:sparsity=0.5", 2)


def hostile_study(folder: Path) -> StudyFolder:
    """Five configurations, four seeds, two failed runs, and markup wherever text can be."""
    texts = [f"{number} {HOSTILE}" for number in range(120)]
    study = make_study(
        folder,
        ACCURACIES,
        seeds=4,
        world=World(examples=120),
        texts=texts,
        failed={FAILED: f"out of memory {HOSTILE}", ("random:sparsity=0.8", 2): "killed"},
    )
    for file in (folder / "data").iterdir():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        named = [row | {"label": NAMES[row["label"]]} for row in rows]
        file.write_text("\n".join(map(json.dumps, named)), encoding="utf-8")
    noted = tuple(replace(each, note=HOSTILE) for each in study.configurations)
    rows = [
        {"label": "topk 80 %", "accuracy": 0.9159, "note": HOSTILE},
        {"label": HOSTILE, "accuracy": 0.5, "note": "nothing of ours"},
    ]
    hostile = replace(
        study,
        name=HOSTILE,
        command=("crisp", "sweep", "--text", HOSTILE, "\udcff"),
        plan=replace(study.plan, configurations=noted, model=HOSTILE),
        versions={"torch": HOSTILE},
        additions=(Addition("2025-02-01T12:00:00+00:00", (HOSTILE,), (HOSTILE,), (2, 3)),),
        published={"rows": rows, "caveats": [f"Another recipe. {HOSTILE}"]},
    )
    hostile.write()
    return StudyFolder.read(folder)


def exact(path: Path) -> pd.DataFrame:
    """A CSV file with every number as it was written."""
    return pd.read_csv(path, dtype=str).map(_number)


def _number(text: Any) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
