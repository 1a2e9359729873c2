"""Several machines pull the runs of one study from one PostgreSQL."""

import os
import time
import uuid
from collections import Counter

import optuna
import pytest
import sqlalchemy

from crisp_attention.errors import OptionError
from crisp_attention.studies.sweep.storage import Storage
from tests.studies.claiming import PLANNED, claim_one, open_queue, started
from tests.studies.sweeping import Worker, each_once, same_run, states

SEEDS, EPOCHS = 2, 8


@pytest.fixture(scope="module")
def url() -> str:
    found = os.environ.get("CRISP_POSTGRESQL")
    if not found:
        reason = "no PostgreSQL; set CRISP_POSTGRESQL to its URL, as .ci/run does"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


@pytest.fixture
def study(url):
    """A name for a study, which is gone after the test."""
    name = f"test-{uuid.uuid4()}"
    yield name
    if name in optuna.get_all_study_names(driver(url)):
        optuna.delete_study(study_name=name, storage=driver(url))


def driver(url):
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.mark.slow
def test_two_machines_share_a_study_and_one_of_them_dies(
    small_bert, reviews, url, study, undisturbed, tmp_path
):
    flags = ["--storage", url, "--study", study]
    outputs = [tmp_path / "one", tmp_path / "other"]
    one, other = (
        Worker(small_bert, reviews, output, *flags, seeds=SEEDS, epochs=EPOCHS) for output in outputs
    )
    one.wait_for_runs()
    one.kill()
    code, said = other.ends()
    assert code == 0, said
    found = states(study, driver(url))
    each_once(found, 2 * SEEDS)
    assert sorted(map(len, found.values())) == [*[1] * (2 * SEEDS - 1), 2]  # what the killed one had
    done = Counter(file.parent.name for output in outputs for file in output.glob("runs/*/metrics.json"))
    assert done == dict.fromkeys(found, 1)
    for file in tmp_path.glob("*/runs/*/metrics.json"):
        same_run(file.parent, undisturbed / "runs" / file.parent.name)
    assert "of-the-test" not in "".join(file.read_text() for file in tmp_path.glob("*/study.json"))


def test_the_run_of_a_machine_that_died_is_queued_again_after_the_grace_period(url, study, tmp_path):
    process, pipe = started(claim_one, tmp_path, url, "elsewhere", study)
    name, chosen = pipe.recv()
    process.kill()
    process.join()
    patient, hasty = open_queue(tmp_path, url, study=study), open_queue(tmp_path, url, 1, study=study)
    assert len([patient.claim(PLANNED) for _ in PLANNED[1:]]) == 2
    assert patient.claim(PLANNED) is None
    time.sleep(1.5)
    assert patient.claim(PLANNED) is None
    again = hasty.claim(PLANNED)
    assert (again.user_attrs["run"], again.suggest_float("chosen", 0, 1)) == (name, chosen)


def test_a_wrong_password_is_said_and_not_shown(url, tmp_path):
    wrong = sqlalchemy.make_url(url).set(password="hush-hush").render_as_string(hide_password=False)
    with pytest.raises(OptionError, match=r"cannot be opened: .*password authentication failed") as refused:
        Storage(wrong, tmp_path)
    assert "hush-hush" not in str(refused.value)
