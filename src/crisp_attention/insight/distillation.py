"""Training a sparse model to predict what its dense original predicts."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import kl_div, mse_loss

from crisp_attention.models.borrowing import evaluating

Batch = Mapping[str, Any]


def distill(student: nn.Module, teacher: nn.Module, *, temperature: float = 1.0) -> "Distillation":
    """A loss by which a sparse model learns the predictions of its dense original, in place of labels.

    Of models with logits it is the Kullback-Leibler divergence of the student's distribution from the teacher's, times
    the temperature squared, per example or, where there are logits for every token, per token that is not padding. Of
    others, such as diffusion transformers, the mean squared difference of what they predict. Sparse attention was found
    to drift less by it than by the loss that the model was trained with (SpargeAttention2, arXiv 2602.13515).

    Parameters
    ----------
    student
        The model that is trained. Its mode stays what it is.
    teacher
        The dense original, of the same inputs and outputs. It is run in evaluation mode and without gradients, and gets
        none.
    temperature
        Logits are divided by it, more than 0.

    Returns
    -------
    Distillation
        Called with a batch, a mapping of what both models are called with (labels are left out), it gives the loss, a
        scalar. Its `compute_loss` is that of a `transformers.Trainer`: `trainer.compute_loss = loss.compute_loss`.

    Raises
    ------
    ValueError
        If the temperature is not more than 0, or the same model is both.

    Examples
    --------
    >>> import copy, torch
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> teacher = BertForSequenceClassification(BertConfig(**sizes))
    >>> student = crisp.sparsify(copy.deepcopy(teacher), crisp.SparseLinear(0.5, block_size=2))
    >>> loss = crisp.distill(student, teacher)
    >>> loss({"input_ids": torch.arange(16)[None]}).backward()
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be more than 0, got {temperature}")
    if student is teacher:
        raise ValueError("student and teacher are the same model: copy it before you make it sparse")
    return Distillation(student, teacher, temperature)


class Distillation:
    """What `distill` returns."""

    def __init__(self, student: nn.Module, teacher: nn.Module, temperature: float) -> None:
        self.student, self.teacher, self.temperature = student, teacher, temperature

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of a batch. Raises ValueError if the models' predictions differ in shape."""
        return self._loss(self.student, batch)[0]

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """`Trainer.compute_loss`: the loss and, if asked for, the student's outputs. Evaluation keeps its labels."""
        loss, outputs = self._loss(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def _loss(self, student: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        given = {name: each for name, each in batch.items() if name != "labels"}
        outputs = student(**given)
        with evaluating(self.teacher):
            wanted = _predicted(self.teacher(**given))
        found = _predicted(outputs)
        if found.shape != wanted.shape:
            raise ValueError(
                f"the student predicts {tuple(found.shape)}, the teacher {tuple(wanted.shape)}: expected the same shape"
            )
        if getattr(outputs, "logits", None) is None:
            return mse_loss(found.float(), wanted.float()), outputs
        real = batch.get("attention_mask")
        if found.dim() == 3 and isinstance(real, Tensor) and real.shape == found.shape[:2]:
            found, wanted = found[real.bool()], wanted[real.bool()]
        one, other = (each.float().flatten(0, -2) / self.temperature for each in (found, wanted))
        loss = kl_div(one.log_softmax(-1), other.log_softmax(-1), reduction="batchmean", log_target=True)
        return loss * self.temperature**2, outputs


def _predicted(outputs: Any) -> Tensor:
    """The logits of outputs, or else their first tensor."""
    found: Any = getattr(outputs, "logits", None)
    if found is None:
        values = outputs.values() if isinstance(outputs, Mapping) else outputs
        found = (
            outputs
            if isinstance(outputs, Tensor)
            else next(each for each in values if isinstance(each, Tensor))
        )
    return found
