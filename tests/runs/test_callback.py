"""A sparsity schedule in a user's own Trainer: every number is that of the model it belongs to."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

import crisp_attention as crisp
from crisp_attention import Schedule, SparsityCallback, TopK, Window
from crisp_attention.models.sparse_model import SparseModel
from tests.models.adapted import quiet
from tests.models.tiny import distilbert

STEPS, FINAL_STEP = 8, 6  # of the second the ramp is done
RAMP = Schedule(final=0.8, shape="linear", begin=0.25, end=0.75)
DRAWN = torch.Generator().manual_seed(0)
EXAMPLES = [
    {"input_ids": row, "labels": i % 2}
    for i, row in enumerate(torch.randint(2, 32, (16, 8), generator=DRAWN))
]
WORSE = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]  # with every step: the nearly dense checkpoints look best


def sparse():
    return crisp.sparsify(distilbert(layers=2), TopK(0.8))


def sparsity_of(model):
    (found,) = set(SparseModel.of(model).sparsity.values())
    return found


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.stack([row["input_ids"] for row in EXAMPLES])).logits


class Recorder(TrainerCallback):
    """The sparsity of every step as it trained; stops after one."""

    def __init__(self, stop=None):
        self.seen, self.stop = {}, stop

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen[state.global_step] = sparsity_of(model)
        if state.global_step == self.stop:
            control.should_training_stop = True


def trainer(folder, *callbacks, model=None, schedule=RAMP, scores=None, **changes):
    """A Trainer that evaluates and saves after every step; `scores` are what the evaluations give, in order."""
    given = {
        "max_steps": STEPS,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_only_model": True,
    } | changes
    if scores is not None:
        given |= {"metric_for_best_model": "score", "greater_is_better": True}
    drawn = iter(scores or ())
    model = (
        {"model_init": model}
        if callable(model) and not isinstance(model, torch.nn.Module)
        else {"model": model or sparse()}
    )
    return Trainer(
        **model,
        args=TrainingArguments(
            output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **given
        ),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES,
        compute_metrics=None if scores is None else lambda _: {"score": next(drawn)},
        callbacks=[SparsityCallback(schedule), *callbacks],
    )


def evaluations(made):
    return {entry["step"]: entry for entry in made.state.log_history if "eval_loss" in entry}


@pytest.fixture
def unwarned():
    """A test in which nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- which sparsity


def test_a_step_its_log_its_evaluation_and_its_checkpoint_have_one_sparsity(tmp_path, unwarned):
    made = trainer(tmp_path, recorder := Recorder(), eval_on_start=True)
    made.train()
    planned = {step: pytest.approx(RAMP(step / STEPS)) for step in range(1, STEPS + 1)}
    assert recorder.seen == planned
    logged = {entry["step"]: entry["sparsity"] for entry in made.state.log_history if "loss" in entry}
    assert logged == planned
    evaluated = evaluations(made)
    assert {step: entry["sparsity"] for step, entry in evaluated.items()} == {0: 0.0, **planned}
    assert sparsity_of(made.model) == 0.8
    for step in (3, 5, STEPS):
        loaded = crisp.load(tmp_path / f"checkpoint-{step}")
        assert sparsity_of(loaded) == planned[step]
        labels = torch.tensor([row["labels"] for row in EXAMPLES])
        loss = torch.nn.functional.cross_entropy(logits_of(loaded), labels).item()
        assert evaluated[step]["eval_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_ramp_to_the_end_is_evaluated_at_its_end(tmp_path, unwarned):
    made = trainer(tmp_path, schedule=Schedule(final=0.8, end=1.0), load_best_model_at_end=True)
    made.train()
    assert evaluations(made)[STEPS]["sparsity"] == sparsity_of(made.model) == 0.8
    assert made.state.best_global_step == STEPS


@pytest.mark.parametrize(
    ("layers", "found"), [({"*": Window(3)}, "none"), ({"*": TopK(0.5), "0": TopK(0.2)}, r"\[0.2, 0.5\]")]
)
def test_a_model_without_one_common_sparsity_is_refused(tmp_path, layers, found):
    made = trainer(tmp_path, model=crisp.sparsify(distilbert(), layers=layers))
    with pytest.raises(ValueError, match=f"one sparsity for all layers; this model has {found}"):
        made.train()


def test_the_model_is_found_in_what_wraps_it(tmp_path):
    made = trainer(tmp_path)
    made.state.max_steps, made.state.global_step = STEPS, 3
    wrapped = torch.nn.DataParallel(made.model)
    SparsityCallback(RAMP).on_step_begin(made.args, made.state, made.control, model=wrapped)
    assert sparsity_of(made.model) == pytest.approx(RAMP(4 / STEPS))


def test_a_model_made_dense_after_training_can_be_evaluated(tmp_path):
    made = trainer(tmp_path, eval_strategy="no", save_strategy="no")
    made.train()
    crisp.densify(made.model)
    made.evaluate()
    assert "sparsity" not in made.state.log_history[-1]


# --- which checkpoint


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"save_total_limit": 1}, marks=pytest.mark.slow),
        pytest.param({"save_strategy": "best"}, marks=pytest.mark.slow),
        {"save_strategy": "best", "save_total_limit": 1},
        {"eval_strategy": "epoch", "save_strategy": "epoch", "per_device_train_batch_size": 16},
    ],
    ids=["steps", "one kept", "best", "one best kept", "epochs"],
)
def test_the_best_is_chosen_at_the_final_sparsity_and_is_what_is_delivered(tmp_path, unwarned, changes):
    made = trainer(tmp_path, scores=WORSE, load_best_model_at_end=True, **changes)
    made.train()
    state = made.state
    assert (state.best_global_step, state.best_metric) == (FINAL_STEP, WORSE[FINAL_STEP - 1])
    assert state.best_model_checkpoint == str(tmp_path / f"checkpoint-{FINAL_STEP}")
    best = crisp.load(state.best_model_checkpoint)
    assert sparsity_of(best) == sparsity_of(made.model) == 0.8
    torch.testing.assert_close(logits_of(made.model), logits_of(best), rtol=0, atol=0)
    loss = evaluations(made)[FINAL_STEP]["eval_loss"]
    made.compute_metrics = None
    assert made.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_patience_counts_at_the_final_sparsity(tmp_path, unwarned, first):
    made = trainer(tmp_path, scores=WORSE, load_best_model_at_end=True)
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    made.callback_handler.callbacks.insert(0 if first else len(made.callback_handler.callbacks), stopping)
    made.train()
    assert made.state.global_step == FINAL_STEP + 1  # one evaluation that is no better than the first at 0.8
    assert made.state.best_global_step == FINAL_STEP
    best = crisp.load(tmp_path / f"checkpoint-{FINAL_STEP}")
    torch.testing.assert_close(logits_of(made.model), logits_of(best), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_learning_rate_that_follows_a_metric_follows_it_at_the_final_sparsity(tmp_path, kind):
    fields = {"mode": "max", "patience": 1, "min_lr": 0}
    made = trainer(
        tmp_path, scores=WORSE, save_strategy="no", lr_scheduler_type=kind, lr_scheduler_kwargs=fields
    )
    made.train()
    rates = [entry["learning_rate"] for entry in made.state.log_history if "loss" in entry]
    assert rates == [1e-2] * STEPS
    assert made.optimizer.param_groups[0]["lr"] < 1e-2  # two evaluations no better than the first at 0.8


@pytest.mark.slow
def test_every_trial_of_a_search_chooses_at_the_final_sparsity(tmp_path):
    chosen = []

    class Chosen(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            chosen.append((state.best_global_step, sparsity_of(model)))

    made = trainer(tmp_path, Chosen(), model=sparse, scores=3 * WORSE, load_best_model_at_end=True)
    made.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)},
        compute_objective=lambda metrics: metrics["eval_score"],
        n_trials=2,
        backend="optuna",
    )
    assert chosen == 2 * [(FINAL_STEP, 0.8)]


# --- what is said


def test_stopping_before_the_final_sparsity_says_so_with_numbers(tmp_path):
    made = trainer(tmp_path, Recorder(stop=4), scores=WORSE, load_best_model_at_end=True)
    with warnings.catch_warnings(record=True) as caught:
        made.train()
    (said,) = [str(each.message) for each in caught]
    assert said == (
        "training ended at step 4 of 8: the model has sparsity 0.4, not the schedule's final 0.8, which step 6 "
        "would have reached; load_best_model_at_end found no checkpoint at the final sparsity 0.8 with an evaluation "
        "to choose it by, and loaded none: the model is the one after step 4"
    )
    assert made.state.best_model_checkpoint is None
    last = crisp.load(tmp_path / "checkpoint-4")
    assert sparsity_of(last) == sparsity_of(made.model) == pytest.approx(0.4)
    torch.testing.assert_close(logits_of(made.model), logits_of(last), rtol=0, atol=0)


def test_a_best_evaluation_that_was_not_saved_cannot_be_loaded_and_that_is_said(tmp_path):
    scores = [*WORSE[:-2], 0.95, 0.2]  # the best is that of step 7; checkpoints are those of 4 and 8
    made = trainer(tmp_path, scores=scores, load_best_model_at_end=True, save_steps=4)
    with pytest.warns(
        UserWarning, match="^load_best_model_at_end found no checkpoint .* is the one after step 8$"
    ):
        made.train()
    assert sparsity_of(made.model) == 0.8


@pytest.mark.slow
def test_messages_go_where_they_are_wanted(tmp_path, unwarned):
    said = []
    made = trainer(tmp_path, Recorder(stop=3), eval_strategy="no")
    made.pop_callback(SparsityCallback)
    made.add_callback(SparsityCallback(RAMP, warn=said.append))
    made.train()
    assert said == [
        "training ended at step 3 of 8: the model has sparsity 0.2, not the schedule's final 0.8, which step 6 "
        "would have reached"
    ]


# --- resuming


@pytest.mark.slow
def test_a_resumed_run_has_the_same_schedule_and_chooses_the_same_checkpoint(tmp_path, unwarned):
    def run(recorder, done=0):
        return trainer(
            tmp_path, recorder, scores=WORSE[done:], load_best_model_at_end=True, save_only_model=False
        )

    whole = run(undisturbed := Recorder())
    whole.train()
    assert whole.state.best_global_step == FINAL_STEP
    for done in (7, 4):  # after and before the best checkpoint
        resumed = run(recorder := Recorder(), done)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{done}"))
        assert recorder.seen == {step: now for step, now in undisturbed.seen.items() if step > done}
        assert resumed.state.best_global_step == FINAL_STEP
        torch.testing.assert_close(logits_of(resumed.model), logits_of(whole.model), rtol=0, atol=0)


@pytest.mark.slow
def test_a_resumed_run_begins_with_the_sparsity_of_its_checkpoint(tmp_path):
    trainer(tmp_path, Recorder(stop=4), schedule=Schedule(0.4, end=0.5), save_only_model=False).train()
    again = trainer(tmp_path, recorder := Recorder(), eval_on_start=True, max_steps=12)
    with pytest.warns(
        UserWarning, match="of step 4 has sparsity 0.4; .* continues from 0.1333, its value at step 4 of 12$"
    ):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert evaluations(again)[4]["sparsity"] == 0.4
    assert recorder.seen[5] == pytest.approx(RAMP(5 / 12))


def test_a_best_at_another_final_sparsity_is_not_kept(tmp_path):
    trainer(
        tmp_path, Recorder(stop=6), schedule=Schedule(0.4, end=0.25), scores=WORSE, save_only_model=False
    ).train()
    again = trainer(tmp_path, schedule=Schedule(0.8, end=0.5), scores=WORSE[6:], load_best_model_at_end=True)
    with pytest.warns(UserWarning, match="has sparsity 0.4; the schedule continues from 0.8"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert (again.state.best_global_step, sparsity_of(again.model)) == (7, 0.8)


# --- adapters


def with_adapter(name):
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"])
    return get_peft_model(sparse(), config, adapter_name=name)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("name", ["default", "mine"])  # by another name it has a folder of its own
def test_a_checkpoint_of_adapters_brings_its_sparsity_as_any_other(tmp_path, name):
    trainer(
        tmp_path,
        Recorder(stop=4),
        model=with_adapter(name),
        schedule=Schedule(0.4, end=0.5),
        save_only_model=False,
    ).train()
    again = trainer(tmp_path, model=with_adapter(name), eval_on_start=True, max_steps=12)
    with pytest.warns(UserWarning, match="of step 4 has sparsity 0.4; the schedule continues from 0.1333"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert evaluations(again)[4]["sparsity"] == 0.4


@quiet
@pytest.mark.slow
def test_the_best_adapter_at_another_final_sparsity_is_not_kept(tmp_path):
    made = {"model": with_adapter("default"), "scores": WORSE}
    trainer(
        tmp_path, Recorder(stop=6), schedule=Schedule(0.4, end=0.25), save_only_model=False, **made
    ).train()
    made = {"model": with_adapter("default"), "scores": WORSE[6:], "load_best_model_at_end": True}
    again = trainer(tmp_path, schedule=Schedule(0.8, end=0.5), **made)
    with pytest.warns(UserWarning, match="has sparsity 0.4; the schedule continues from 0.8"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert (again.state.best_global_step, sparsity_of(again.model)) == (7, 0.8)
