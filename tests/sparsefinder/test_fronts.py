"""The curves of a study, and what is said of them, on numbers that can be checked by hand."""

import numpy as np
import pandas as pd
import pytest

from crisp_attention.sparsefinder import fronts
from crisp_attention.sparsefinder.findings import Results, findings
from crisp_attention.sparsefinder.quality import FULL, Quality

COLUMNS = ["variant", "setting", "seed", "layer", "head", "sparsity", "recall", "exact", "gold_sparsity"]
ROWS = [
    ("kmeans", "a", 0, 0, 0, 0.5, 0.96, 0.9, 0.75),
    ("kmeans", "a", 1, 0, 0, 0.5, 0.94, 0.9, 0.75),
    ("kmeans", "b", 0, 0, 0, 0.8, 0.7, 0.5, 0.75),
    ("kmeans", "b", 1, 0, 0, 0.8, 0.7, 0.5, 0.75),
    ("kmeans", "beaten", 0, 0, 0, 0.7, 0.6, 0.4, 0.75),
    ("window", "c", 0, 0, 0, 0.4, 0.99, 0.9, 0.75),
    ("window", "d", 0, 0, 0, 0.9, 0.4, 0.1, 0.75),
]
TABLE = pd.DataFrame(ROWS, columns=COLUMNS)


def test_a_front_holds_what_nothing_sparser_beats():
    points = fronts.points(TABLE, "recall")
    kmeans = points[points["variant"] == "kmeans"]
    assert fronts.front(kmeans, "recall")[["sparsity", "recall"]].to_numpy().tolist() == [
        [0.5, 0.95],
        [0.8, 0.7],
    ]
    loss = kmeans.assign(recall=1 - kmeans["recall"])
    assert fronts.front(loss, "recall", higher=False)["sparsity"].tolist() == [0.5, 0.8]
    found = fronts.curves(points, "recall")
    at = {place: found["kmeans"][round(100 * place)] for place in (0.3, 0.5, 0.51, 0.8)}
    assert at == {0.3: 0.95, 0.5: 0.95, 0.51: 0.7, 0.8: 0.7}
    assert np.isnan(found["kmeans"][81])
    assert found["window"][40] == 0.99


def test_who_leads_where():
    found = list(fronts.leads(fronts.curves(fronts.points(TABLE, "recall"), "recall")))
    assert [(each.low, each.high, each.winner) for each in found] == [
        (0.0, 0.4, "window"),
        (0.41, 0.8, "kmeans"),
    ]
    low = fronts.curves(fronts.points(TABLE, "recall").assign(recall=lambda t: -t["recall"]), "recall", False)
    assert [each.winner for each in fronts.leads(low, higher=False)] == ["window", "kmeans"]


def test_the_findings_are_computed():
    outcome = pd.DataFrame(
        [(FULL, FULL, 0, 0.0, 0.9), ("kmeans", "a", 0, 0.5, 0.85), ("window", "c", 0, 0.4, 0.7)],
        columns=["variant", "setting", "seed", "sparsity", "quality"],
    )
    quality = Quality("accuracy", lambda model: 0.0, percent=True)
    told = findings(Results(TABLE, outcome, ("kmeans",), quality))
    assert told[0].startswith("Entmax itself gives weight to 25.0% of the valid pairs")
    assert told[1] == "With entmax of all pairs the accuracy is 90.0%."
    assert told[2].startswith(
        "Recall: window leads from 0% to 40% sparsity, kmeans leads from 41% to 80% sparsity; shorter"
    )
    assert (
        "ahead at 49% (by at most 55.0 points, at 41% sparsity) and behind at 51% (by at most 4.0 poin"
        in told[3]
    )
    assert any(each.startswith("Accuracy: kmeans leads from 0% to 40%") for each in told)
    assert told[-1].startswith("From one seed to another the recall of a setting varies by 0.7 points")
    assert "at most by 1.4" in told[-1]


def test_without_a_lead_it_says_so():
    same = pd.concat([TABLE[TABLE["variant"] == "kmeans"].assign(variant=name) for name in ("one", "two")])
    told = findings(Results(same, pd.DataFrame(), ("one",)))
    assert "Recall: no curve leads by at least 0.5 points over a range of 5% sparsity." in told
    assert pytest.approx(0.75) == same["gold_sparsity"].mean()
