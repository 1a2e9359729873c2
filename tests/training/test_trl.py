"""TRL's SFTTrainer on a sparse model: packed or padded, the losses are the same."""

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, TopK

# TRL sets the name that transformers gives up
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")

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

    def run(method, **how):
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
        trainer = SFTTrainer(model, args=config, train_dataset=stories, processing_class=tokenizer)
        trainer.train()
        rows = [row for row in trainer.state.log_history if "grad_norm" in row]
        return [row["loss"] for row in rows], [row["grad_norm"] for row in rows]

    return run


@pytest.mark.parametrize("method", [Dense(), TopK(0.5), BlockTopK(0.5, block_size=4)])
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
