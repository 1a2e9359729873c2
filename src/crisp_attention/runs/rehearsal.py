"""A rehearsal: the passes of a run, with a few examples and before any training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from accelerate.utils import send_to_device
from datasets import Dataset
from transformers import Trainer

from crisp_attention.errors import OptionError, first_line
from crisp_attention.insight.measuring import measuring
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.sparse_model import SparseModel, is_sparse
from crisp_attention.models.transformers.checkpoints import UNUSABLE
from crisp_attention.runs.sources import Source
from crisp_attention.runs.task import Task
from crisp_attention.runs.trainer import longest_first

FEW = 4  # examples of a split, its longest ones
DROPS_NOTHING = "nothing is dropped, not even of the longest examples: this is dense attention"


class Rehearsed(NamedTuple):
    """Why attention cannot be measured in a run that is dense, and whether one that should be sparse drops nothing."""

    unmeasured: str | None
    drops_nothing: bool


def rehearse(trainer: Trainer, source: Source, task: Task) -> Rehearsed:
    """Train, evaluate and measure on the longest and shortest examples of the encoded task.

    Model and generators stay as they were. Raises OptionError for everything that would make the run fail.
    """
    splits = {"train": trainer.train_dataset, "validation": trainer.eval_dataset}
    if "test" in task.splits:
        splits["test"] = task.splits["test"]
    ordered = {name: longest_first(split) for name, split in splits.items()}
    longest = {name: _batch(trainer, rows, range(min(FEW, len(rows)))) for name, rows in ordered.items()}
    shortest = {name: _batch(trainer, rows, [len(rows) - 1]) for name, rows in ordered.items()}
    with borrowed(source.model, untouched=True):
        with _doing(trainer, "be trained"):
            _train(trainer, longest["train"])
        batch_size = trainer.args.train_batch_size
        if len(ordered["train"]) % batch_size == 1 or batch_size == 1:  # batch normalisation may refuse it
            with _doing(
                trainer,
                f"be trained on the single example that is left for the last batch with batch_size={batch_size}",
            ):
                _train(trainer, shortest["train"])
        for name in splits:
            with _doing(trainer, f"read the {name} split"):
                _evaluate(trainer, longest[name], task.target.outputs)
                _evaluate(trainer, shortest[name], task.target.outputs)
        with _doing(trainer, "be saved"), TemporaryDirectory() as folder:
            source.model.config.save_pretrained(folder)
        try:
            with _doing(trainer, "be measured"), measuring(source.model) as measured:
                _evaluate(trainer, longest["validation"], task.target.outputs)
                sparsity = measured.summary()["sparsity"]
        except OptionError as error:
            if is_sparse(source.model):
                raise
            return Rehearsed(str(error), drops_nothing=False)
    sparse = SparseModel.find(source.model)
    # it was measured in evaluation
    return Rehearsed(None, sparsity == 0 and sparse is not None and sparse.phase != "train")


@contextmanager
def _doing(trainer: Trainer, what: str) -> Iterator[None]:
    try:
        yield
    except UNUSABLE as error:
        raise OptionError(f"{type(trainer.model).__name__} cannot {what}: {first_line(error)}") from error


def _batch(trainer: Trainer, rows: Dataset, chosen: Iterable[int]) -> dict[str, Any]:
    return send_to_device(trainer.data_collator(list(rows.select(chosen))), trainer.args.device)


def _train(trainer: Trainer, batch: dict[str, Any]) -> None:
    model: Any = trainer.model
    model.train()
    if trainer.args.gradient_checkpointing:  # transformers 5.23 has other names for both
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with trainer.accelerator.autocast():
        loss: Any = trainer.compute_loss(model, dict(batch))
    loss.backward()
    if trainer.args.gradient_checkpointing:
        getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()


def _evaluate(trainer: Trainer, batch: dict[str, Any], outputs: int) -> None:
    model: Any = trainer.model
    with borrowed(model, evaluate=True), trainer.accelerator.autocast():
        logits = model(**batch).logits
    if (found := tuple(logits.shape)) != (expected := (len(batch["labels"]), outputs)):
        raise ValueError(f"its logits have the shape {found}; expected {expected} (examples, outputs)")
