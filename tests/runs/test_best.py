"""`load_best_model_at_end` with a schedule, through `crisp finetune`: what is measured is what is delivered."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, TrainerCallback

import crisp_attention as crisp
from tests.models.tiny import sparsity_of
from tests.runs import small
from tests.runs.tables import task_of


class Kept(TrainerCallback):
    """Copies the best checkpoint before the run removes it; or stops the run at a step."""

    def __init__(self, folder, stop=None):
        self.folder, self.stop = folder, stop

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stop

    def on_train_end(self, args, state, control, **kwargs):
        if state.best_model_checkpoint is not None:
            shutil.copytree(state.best_model_checkpoint, self.folder)


@pytest.fixture
def run(bert, reviews, tmp_path):
    """A run whose sparsity rises to 0.9 in 36 steps, by 70 % of them: the run, and what it said."""

    def run(stop=None, *training):
        options = small.options(
            bert,
            reviews,
            tmp_path / "run",
            sparsity=0.9,
            schedule="linear",
            ramp=(0.2, 0.7),
            epochs=6,
            learning_rate=2e-2,
            seed=8,
            training=("use_cpu=true", "load_best_model_at_end=true", *training),
        )
        console = Console(file=io.StringIO(), width=40)
        done = small.tuned(options, console, callbacks=[Kept(tmp_path / "best", stop)])
        return done, console.file.getvalue()

    return run


def predicted(model, run, dataset):
    tokenizer = AutoTokenizer.from_pretrained(run.directory / "model")
    texts = task_of(dataset).splits["validation"]["text"][:]
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()


@pytest.mark.slow
def test_the_delivered_model_is_the_best_at_the_final_sparsity_and_the_one_measured(run, reviews, tmp_path):
    done, said = run(None, "lr_scheduler_type=constant")
    history = pd.read_csv(done.directory / "history.csv")
    evaluated = history.dropna(subset="eval_loss").set_index("step")
    assert evaluated["sparsity"].tolist() == pytest.approx([0, 0.24, 0.54, 0.84, 0.9, 0.9])
    final = evaluated[evaluated["sparsity"] == 0.9]["eval_loss"]
    chosen = final.idxmin()
    assert f"loaded checkpoint-{chosen}, the best by loss" in said

    best, delivered = crisp.load(tmp_path / "best"), crisp.load(done.directory / "model")
    for model in (best, delivered):
        assert set(sparsity_of(model).values()) == {0.9}
    logits = predicted(best, done, reviews)
    assert np.array_equal(predicted(delivered, done, reviews), logits)
    table = pd.read_parquet(done.directory / "predictions-validation.parquet")
    np.testing.assert_allclose(np.stack(table["logits"]), logits, atol=1e-6)
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(table["label"].to_numpy()))
    measured = json.loads((done.directory / "metrics.json").read_text())["validation"]
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert measured["loss"] == pytest.approx(final[chosen], rel=1e-5)
    assert measured["accuracy"] == pytest.approx(evaluated["eval_accuracy"][chosen])


@pytest.mark.slow
def test_a_run_that_is_stopped_early_says_what_it_delivers(run, reviews, tmp_path):
    done, said = run(14)
    assert "training ended at step 14 of 36: the model has sparsity 0.34" in said
    assert (
        "which step 26 would have reached; load_best_model_at_end found no checkpoint at the final sparsity 0.9"
        in said
    )
    assert not (tmp_path / "best").exists()
    delivered = crisp.load(done.directory / "model")
    (sparsity,) = set(sparsity_of(delivered).values())
    assert sparsity == pytest.approx(0.9 * (14 / 36 - 0.2) / 0.5)
    table = pd.read_parquet(done.directory / "predictions-validation.parquet")
    np.testing.assert_allclose(np.stack(table["logits"]), predicted(delivered, done, reviews), atol=1e-6)
