"""What is shown while a run works."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from crisp_attention.runs.progress import RunProgress
from crisp_attention.runs.task.metrics import ACCURACY


def follow(console, fail=False, best=None):
    args = SimpleNamespace(
        num_train_epochs=2, load_best_model_at_end=best is not None, metric_for_best_model="loss"
    )
    state = SimpleNamespace(global_step=0, max_steps=4, epoch=0.0, best_model_checkpoint=best)
    with RunProgress(console, ACCURACY) as progress:
        progress.on_train_begin(args, state, None)
        for step in (1, 2):
            state.global_step, state.epoch = step, step / 2
            progress.on_step_end(args, state, None)
            progress.on_log(args, state, None, logs={"loss": 0.5})
        if fail:
            raise KeyboardInterrupt
        progress.on_prediction_step(args, state, None, eval_dataloader=[1, 2])
        progress.on_evaluate(args, state, None, metrics={"eval_loss": 0.25, "eval_accuracy": 0.875})
        progress.on_train_end(args, state, None)
        progress.phase = "test"
        progress.on_prediction_step(args, state, None, eval_dataloader=[1, 2])
        progress.on_predict(args, state, None, {})
    return console.file.getvalue()


def test_a_file_gets_one_line_an_evaluation():
    (line,) = follow(Console(file=io.StringIO(), width=40)).splitlines()
    assert line.startswith(
        "epoch 1 of 2, step 2 of 4, loss 0.500, validation loss 0.250, accuracy 87.5% (0:00:0"
    )
    assert line.endswith(" left)")


def test_the_checkpoint_that_is_loaded_at_the_end_is_named():
    shown = follow(Console(file=io.StringIO(), width=40), best="runs/first/checkpoints/checkpoint-2")
    assert shown.splitlines()[-1] == "loaded checkpoint-2, the best by loss"


def test_a_terminal_gets_a_moving_line_and_is_given_back():
    shown = follow(Console(file=io.StringIO(), width=120, force_terminal=True))
    assert "training" in shown
    assert "accuracy 87.5%" in shown
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        follow(console, fail=True)
    assert console.file.getvalue().rindex("\x1b[?25h") > console.file.getvalue().rindex("\x1b[?25l")
