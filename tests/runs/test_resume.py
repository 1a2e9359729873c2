"""An interrupted run goes on as if nothing had happened; no run is lost by accident."""

import io
import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import transformers
from packaging.version import Version
from rich.console import Console

from crisp_attention.errors import CheckpointError, OptionError
from crisp_attention.files import write_json
from crisp_attention.runs import costs
from crisp_attention.runs.progress import RunProgress
from crisp_attention.runs.run_directory import RunDirectory, newest_checkpoint
from crisp_attention.runs.trainer import RunTrainer
from crisp_attention.schedule import Schedule
from tests.models.tiny import sparsity_of
from tests.runs import small

SAVED = Path(__file__).parents[1] / "saved" / "runs" / "interrupted" / "checkpoints"
WEIGHTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
STEPS = 18
BEST = ("use_cpu=true", "load_best_model_at_end=true")
needs_resuming = pytest.mark.skipif(
    Version(transformers.__version__).release < (5, 7), reason="this transformers restores LayerNorm wrongly"
)


class Watch:
    """Records the sparsity of every step; interrupts the run after one of them."""

    def __init__(self, patch):
        self.seen, self.stop = [], None
        patch.setattr(RunProgress, "on_step_end", self.on_step_end)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append((state.global_step, *set(sparsity_of(model).values())))
        if state.global_step == self.stop:
            self.stop = None
            raise KeyboardInterrupt

    def interrupt(self, options, after):
        self.seen, self.stop = [], after
        with pytest.raises(KeyboardInterrupt):
            small.tuned(options)


@pytest.fixture
def watch(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(costs, "_now", lambda device: next(clock))  # every step takes one second
    return Watch(monkeypatch)


def resume(options):
    console = Console(file=io.StringIO(), width=80)
    return small.tuned(replace(options, resume=True), console), console.file.getvalue()


def contents(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def same(resumed, undisturbed):
    for name in undisturbed.metrics.keys() - {"peak_memory_bytes"}:
        assert resumed.metrics[name] == undisturbed.metrics[name], name
    for split in ("validation", "test"):
        tables = [
            pd.read_parquet(run.directory / f"predictions-{split}.parquet") for run in (resumed, undisturbed)
        ]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


CUBIC = {"schedule": "cubic", "ramp": (0.1, 0.6)}
WITHIN = ("eval_strategy=steps", "eval_steps=4", "save_strategy=steps", "save_steps=4")


@pytest.mark.slow
@needs_resuming
@pytest.mark.parametrize(
    ("changes", "stop", "checkpoint"),
    [
        (CUBIC | {"method": "random", "training": (*BEST, *WITHIN)}, 11, 8),
        (CUBIC | {"training": BEST}, 14, 12),
    ],
    ids=["random keys, within an epoch", "at the end of an epoch"],
)
def test_a_resumed_run_ends_as_the_undisturbed_one(tmp_path, bert, reviews, watch, changes, stop, checkpoint):
    options = small.options(bert, reviews, tmp_path / "undisturbed", **changes)
    undisturbed = small.tuned(options)
    steps, watch.seen = watch.seen, []
    assert [step for step, _ in steps] == list(range(1, STEPS + 1))
    if "schedule" in changes:
        ramp = Schedule(final=0.5, shape="cubic", begin=0.1, end=0.6)
        assert [now for _, now in steps] == pytest.approx([ramp(step / STEPS) for step, _ in steps])

    broken = replace(options, output=tmp_path / "broken")
    watch.interrupt(broken, after=stop)
    assert watch.seen == steps[:stop]
    watch.seen = []
    resumed, said = resume(broken)
    assert watch.seen == steps[checkpoint:]
    assert f"continuing from checkpoint-{checkpoint}" in said
    same(resumed, undisturbed)
    assert (resumed.metrics["train_seconds"], resumed.metrics["seconds_per_step"]) == (STEPS, 1)
    assert not (resumed.directory / "checkpoints").exists()


DAMAGES = [
    *((name, "truncated or damaged") for name in (*WEIGHTS, "trainer_state.json", "config.json")),
    *((name, "missing") for name in (*WEIGHTS, "trainer_state.json", "config.json")),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_if_all_are_that_is_an_error(tmp_path, file, damage):
    for step in (6, 12):
        shutil.copytree(SAVED / "checkpoint-12", tmp_path / f"checkpoint-{step}")
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-12", ())

    def spoil(checkpoint):
        whole = (checkpoint / file).read_bytes()
        (checkpoint / file).unlink()
        if damage != "missing":
            (checkpoint / file).write_bytes(whole[: len(whole) * 2 // 3])

    spoil(tmp_path / "checkpoint-12")
    found, (note,) = newest_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-6"
    assert note.startswith(f"checkpoint-12 is damaged and was skipped: {file} is {damage}")
    spoil(tmp_path / "checkpoint-6")
    with pytest.raises(
        CheckpointError, match=rf"no usable checkpoint in .*: checkpoint-12 is damaged.*{file} is {damage}"
    ):
        newest_checkpoint(tmp_path)


@pytest.mark.slow
@needs_resuming
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, bert, reviews, watch):
    options = small.options(bert, reviews, tmp_path / "run")
    watch.interrupt(options, after=14)
    checkpoints = options.output / "checkpoints"
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["checkpoint-12", "checkpoint-6"]
    (checkpoints / "checkpoint-12" / "optimizer.pt").unlink()
    run, said = resume(options)
    assert "checkpoint-12 is damaged and was skipped: optimizer.pt is missing" in said
    assert "continuing from checkpoint-6" in said
    assert run.metrics["steps"] == STEPS


def test_an_unfinished_run_is_kept_unless_it_is_to_be_replaced(tmp_path, bert, reviews):
    options = small.options(bert, reviews, tmp_path / "run", epochs=0.1)
    RunDirectory(options.output).claim(small.spec(options), {})
    old = options.output / "checkpoints" / "checkpoint-6" / "config.json"
    old.parent.mkdir(parents=True)
    old.touch()
    before = contents(options.output)
    with pytest.raises(
        OptionError, match="an unfinished run; resume=True continues it, overwrite=True replaces it"
    ):
        small.tuned(options)
    assert contents(options.output) == before
    run = small.tuned(replace(options, overwrite=True))
    assert run.metrics["steps"] == 1
    assert not old.exists()


@pytest.fixture
def finished(tmp_path, bert, reviews):
    """Options of a run whose folder says that it is finished, and holds a little of it."""
    options = small.options(bert, reviews, tmp_path / "run", epochs=1)
    directory = RunDirectory(options.output)
    directory.claim(small.spec(options), {})
    write_json(directory.metrics, {})
    return options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ("7",)}, "no layer matched '7'"),
        ({"model": "/no/such/model"}, "no such folder: /no/such/model"),
        ({"dataset": "/no/such/data"}, "/no/such/data does not exist"),
        ({"training": ("weight_decay=much",)}, "invalid float value: 'much'"),
        ({"training": ("use_cpu=true", "optim_args=x")}, "^the run cannot start: ValueError: "),
        (
            {"training": ("use_cpu=true", 'lr_scheduler_kwargs={"a": 1}')},
            "^the run cannot start: TypeError: ",
        ),
    ],
)
def test_a_run_that_cannot_start_leaves_the_one_it_would_replace(finished, changes, message):
    before = contents(finished.output)
    with pytest.raises(ValueError, match=message):
        small.tuned(replace(finished, overwrite=True, **changes))
    assert contents(finished.output) == before
    assert not (finished.output / "checkpoints").exists()


@pytest.mark.parametrize("kind", [ImportError, RuntimeError])
def test_a_package_that_is_missing_is_said_before_anything_changes(finished, tmp_path, monkeypatch, kind):
    def refuse(trainer):
        assert Path(trainer.args.output_dir).is_dir()  # the Trainer makes it, where it is in nobody's way
        raise kind("Needs a package.\nInstall it.")

    monkeypatch.setattr(RunTrainer, "create_optimizer", refuse)
    with pytest.raises(OptionError, match=rf"^the run cannot start: {kind.__name__}: Needs a package\.$"):
        small.tuned(replace(finished, output=tmp_path / "new" / "run"))
    assert not (tmp_path / "new").exists()


def test_a_transformers_that_resumes_wrongly_is_refused(tmp_path, bert, reviews, monkeypatch):
    options = small.options(bert, reviews, tmp_path / "run")
    RunDirectory(options.output).claim(small.spec(options), {})
    before = contents(options.output)
    monkeypatch.setattr(transformers, "__version__", "5.6.2")
    with pytest.raises(OptionError, match=re.escape("resume needs transformers 5.7 or later")) as refused:
        resume(options)
    assert str(refused.value).endswith("installed is 5.6.2")
    assert contents(options.output) == before
