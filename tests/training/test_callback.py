"""The schedule follows the Trainer's progress, and resumes with it."""

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

import crisp_attention as crisp
from crisp_attention import Schedule, SparsityCallback, TopK, Window
from crisp_attention.models.apply import get_sparsity
from tests.models.tiny import BATCH, distilbert

RAMP = Schedule(final=0.8, shape="linear", begin=0.25, end=0.75)


class Recorder(TrainerCallback):
    def __init__(self, stop_after=None):
        self.seen, self.stop_after = [], stop_after

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append((state.global_step, *set(get_sparsity(model).values())))
        control.should_training_stop = state.global_step == self.stop_after


def trainer(folder, model, stop_after=None):
    recorder = Recorder(stop_after)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        save_strategy="steps",
        save_steps=3,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        per_device_train_batch_size=2,
    )
    examples = [{"input_ids": BATCH["input_ids"][0], "labels": i % 2} for i in range(16)]
    made = Trainer(
        model=model, args=arguments, train_dataset=examples, callbacks=[SparsityCallback(RAMP), recorder]
    )
    return made, recorder


def test_every_step_uses_the_sparsity_of_its_progress(tmp_path):
    made, recorder = trainer(tmp_path, crisp.sparsify(distilbert(), TopK(0.8)))
    made.train()
    assert recorder.seen == [(step, pytest.approx(RAMP((step - 1) / 8))) for step in range(1, 9)]
    assert set(get_sparsity(made.model).values()) == {0.8}
    logged = [entry["sparsity"] for entry in made.state.log_history if "loss" in entry]
    assert logged == pytest.approx(
        [RAMP((step - 1) / 8) for step in range(1, 9)]
    )  # of the step, not the next


def test_a_resumed_run_resumes_the_schedule(tmp_path):
    made, before = trainer(tmp_path, crisp.sparsify(distilbert(), TopK(0.8)), stop_after=3)
    made.train()
    made, after = trainer(tmp_path, crisp.sparsify(distilbert(), TopK(0.8)))
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert before.seen + after.seen == [(step, pytest.approx(RAMP((step - 1) / 8))) for step in range(1, 9)]


@pytest.mark.parametrize(
    ("layers", "found"), [({"*": Window(3)}, "none"), ({"*": TopK(0.5), "0": TopK(0.2)}, r"\[0.2, 0.5\]")]
)
def test_a_model_without_one_common_sparsity_is_refused(tmp_path, layers, found):
    made, _ = trainer(tmp_path, crisp.sparsify(distilbert(), layers=layers))
    with pytest.raises(ValueError, match=f"one sparsity for all layers; this model has {found}"):
        made.train()
