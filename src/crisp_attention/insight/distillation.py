"""Training a sparse model to predict what its dense original predicts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, logsigmoid, mse_loss

from crisp_attention.methods.checks import check_number
from crisp_attention.models.borrowing import evaluating
from crisp_attention.models.sparse_model import is_sparse

Batch = Mapping[str, Any]
PREDICTIONS = ("logits", "sample", "last_hidden_state")


def distill(student: nn.Module, teacher: nn.Module, *, temperature: float = 1.0) -> "Distillation":
    """A loss by which a sparse model learns the predictions of its dense original, in place of labels.

    Of models with logits it is the Kullback-Leibler divergence of the student's distribution from the teacher's, times
    the temperature squared, per example or, where there are logits for every token, per token that is not padding. If
    the config's `problem_type` is "multi_label_classification", every label has a distribution, and their divergences
    are added. Of a regression ("regression", or one logit without a `problem_type`), of hidden states and of what
    diffusion transformers predict it is the mean squared difference. Sparse attention was found to drift less by it
    than by the loss that the model was trained with (SpargeAttention2, arXiv 2602.13515).

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
        Called with a batch, a mapping of what both models are called with, it gives the loss, a scalar. Labels are
        left out; of encoder-decoders, what they make of them as input of the decoder is not. Its `compute_loss` is
        that of a `transformers.Trainer`: `trainer.compute_loss = loss.compute_loss`.

    Raises
    ------
    TypeError, ValueError
        If the temperature is not a number above 0, the same model is both, or the teacher is sparse and the student is
        not.

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
    check_number("temperature", temperature, "(0, inf)")
    if student is teacher:
        raise ValueError("student and teacher are the same model: copy it before you make it sparse")
    if is_sparse(teacher) and not is_sparse(student):
        raise ValueError(
            "the teacher is sparse and the student is not: expected crisp.distill(sparse, dense)"
        )
    return Distillation(student, teacher, temperature)


class Distillation:
    """What `distill` returns."""

    def __init__(self, student: nn.Module, teacher: nn.Module, temperature: float) -> None:
        self.student, self.teacher, self.temperature = student, teacher, temperature

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of a batch.

        Raises TypeError for one that is no mapping, or for predictions of a kind that it does not know, and ValueError
        if those of the models differ in shape.
        """
        return self._loss(self.student, batch)[0]

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """`Trainer.compute_loss`: the loss and, if asked for, the student's outputs. Evaluation keeps its labels."""
        loss, outputs = self._loss(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def _loss(self, student: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"expected a mapping of what the models are called with, got {type(batch).__name__}"
            )
        root = _configured(self.student)
        given = _without_labels(root, batch)
        outputs = student(**given)
        with evaluating(self.teacher):
            wanted = _predicted(self.teacher(**given))
        found = _predicted(outputs)
        if found.shape != wanted.shape:
            raise ValueError(
                f"the student predicts {tuple(found.shape)}, the teacher {tuple(wanted.shape)}: expected the same shape"
            )
        found, wanted = found.float(), wanted.float()
        real = _real_tokens(root, batch)
        if found.dim() == 3 and real is not None and real.shape == found.shape[:2]:
            found, wanted = found[real], wanted[real]
        problem = getattr(getattr(root, "config", None), "problem_type", None)
        is_one_logit = found.dim() == 2 and found.shape[1] == 1 and problem is None
        if "logits" not in _named(outputs) or problem == "regression" or is_one_logit:
            return mse_loss(found, wanted), outputs
        one, other = (each.flatten(0, -2) / self.temperature for each in (found, wanted))
        if problem == "multi_label_classification":  # of having each label, and of not having it
            one, other = (torch.cat([logsigmoid(each), logsigmoid(-each)], -1) for each in (one, other))
        else:
            one, other = (each.log_softmax(-1) for each in (one, other))
        loss = kl_div(one, other, reduction="batchmean", log_target=True)
        return loss * self.temperature**2, outputs


def _configured(model: nn.Module) -> nn.Module:
    """The model inside wrappers, such as that of DDP: the outermost module that has a configuration."""
    return next((each for each in model.modules() if hasattr(each, "config")), model)


def _without_labels(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What models are called with; an encoder-decoder's labels are the input of its decoder, if that has no other."""
    given = {name: each for name, each in batch.items() if name != "labels"}
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    own = {"decoder_input_ids", "decoder_inputs_embeds"} & set(given)
    if shift is not None and batch.get("labels") is not None and not own:
        given["decoder_input_ids"] = shift(labels=batch["labels"])
    return given


def _real_tokens(model: nn.Module, batch: Batch) -> Tensor | None:
    """Which of the tokens that get a prediction are no padding, bool (B, L), if the batch says so."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        mask = batch.get("attention_mask")
    elif (mask := batch.get("decoder_attention_mask")) is None and batch.get("labels") is not None:
        mask = batch["labels"] != -100
    return mask.bool() if isinstance(mask, Tensor) else None


def _named(outputs: Any) -> Mapping[str, Any]:
    """Outputs by their names, none if they have no names."""
    return outputs if isinstance(outputs, Mapping) else {}


def _predicted(outputs: Any) -> Tensor:
    """The logits of outputs, their sample or their hidden states, or the tensor that they are."""
    named = _named(outputs)
    for name in PREDICTIONS:
        if isinstance(named.get(name), Tensor):
            return named[name]
    if isinstance(outputs, tuple | list) and len(outputs) == 1:
        (outputs,) = outputs
    if isinstance(outputs, Tensor):
        return outputs
    names = ", ".join(named) or type(outputs).__name__
    raise TypeError(f"expected a tensor, or outputs with {', '.join(PREDICTIONS)}; the model gives {names}")
