"""TRL's SFTTrainer on a sparse model: packed or padded, the losses are the same."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Entmax, TopK
from tests.models.adapted import quiet, recorded
from tests.models.tiny import settings_in

# TRL sets the name that transformers gives up
pytestmark = [pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"), quiet]

STORIES = (
    "Once upon a time there was a girl named Lily. She had a red ball.",
    "Tom saw a big dog in the park.",
    "The sun was warm and the cat slept all day long on the soft mat by the door.",
    "One day a little bird fell from the tree. The boy helped it.",
)


@pytest.fixture(scope="module")
def train(models_folder, tmp_path_factory):
    """Losses and gradient norms of three steps, each on all stories."""
    folder = models_folder / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="</s>")
    stories = Dataset.from_list([{"input_ids": tokenizer(story)["input_ids"]} for story in STORIES])

    def run(method, adapter=None, keep=None, **how):
        torch.manual_seed(0)
        model = crisp.sparsify(AutoModelForCausalLM.from_pretrained(folder), method)
        config = SFTConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            max_steps=3,
            logging_steps=1,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
            dataset_num_proc=None,
            **how,
        )
        trainer = SFTTrainer(
            model, args=config, train_dataset=stories, processing_class=tokenizer, peft_config=adapter
        )
        trainer.train()
        if keep is not None:
            trainer.save_model(keep)
        rows = [row for row in trainer.state.log_history if "grad_norm" in row]
        return [row["loss"] for row in rows], [row["grad_norm"] for row in rows]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [Dense(), TopK(0.5), BlockTopK(0.5, block_size=4)],
)
def test_packed_and_padding_free_training_is_that_of_the_padded_batch(train, method) -> None:
    losses, norms = train(method, per_device_train_batch_size=len(STORIES))
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    for how in (
        {"padding_free": True, "max_length": None, "per_device_train_batch_size": len(STORIES)},
        {"packing": True, "max_length": 256, "per_device_train_batch_size": 1},
    ):
        found = train(method, **how)
        assert found[0] == pytest.approx(losses, rel=1e-4)
        assert found[1] == pytest.approx(norms, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", [TopK(0.5), Entmax("learned")])
def test_adapters_train_packed_as_padded_and_carry_the_setting(train, tmp_path, method) -> None:
    def adapter():
        learned = {"modules_to_save": ["crisp_learned"]} if method == Entmax("learned") else {}
        return LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **learned)

    losses, norms = train(method, adapter(), per_device_train_batch_size=len(STORIES))
    packed = {"packing": True, "max_length": 256, "per_device_train_batch_size": 1}
    found = train(method, adapter(), keep=str(tmp_path), **packed)
    assert losses[-1] < losses[0]
    assert found[0] == pytest.approx(losses, rel=1e-4)
    assert found[1] == pytest.approx(norms, rel=1e-3)
    settings = recorded(tmp_path)
    assert len(settings["layers"]) == len(settings_in(crisp.load(tmp_path))) == 5
    alphas = [
        alpha for layer in settings["learned"].values() for values in layer.values() for alpha in values
    ]
    assert all(alphas)  # they begin at 0
    assert bool(alphas) == (method == Entmax("learned"))
