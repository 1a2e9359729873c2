"""Pruning once more: a step of a loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from crisp_attention.methods.checks import check_one_of
from crisp_attention.pruning.masks import Masks
from crisp_attention.pruning.matrices import Matrix, matrices_of
from crisp_attention.pruning.patterns import Pattern
from crisp_attention.pruning.saliency import SALIENCIES, Gradients
from crisp_attention.pruning.selection import NORMALISED, check_target, select

Batch = Mapping[str, Any]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that models of transformers return for a batch with labels. Raises ValueError if there is none."""
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError("the model returns no loss: expected labels in every batch, or `loss` to be given")
    return loss


def step(
    model: nn.Module,
    batches: Iterable[Batch],
    target: float,
    *,
    pattern: str | None = "2:4",
    block_size: int | None = 32,
    saliency: str = "taylor",
    normalised: str = "sum",
    skip: Sequence[str] = (),
    loss: Callable[[nn.Module, Batch], Tensor] = loss_of,
) -> Masks:
    """Prune the weights that matter least to the loss of some batches, in place, and return which are kept.

    For a loop of your own: prune a little, train inside `masks.held()`, prune more. What is zero already stays pruned,
    so that a loop can be interrupted and a pruned model pruned again; nothing but the zeros has to be saved. Gradients
    are taken in evaluation mode; modes and the parameters' own gradients are left as they were.

    Parameters
    ----------
    model
        Linear layers, convolutions and GPT-2's `Conv1D` are pruned; heads, the first convolution, embeddings and what
        they share, biases, and sizes that the pattern does not divide are not.
    batches
        Mappings of what the model is called with. Give those of the classes that are to be kept.
    target
        The share of zeros among the weights of all layers that are pruned.
    pattern, block_size
        At most N of each M neighbouring inputs ("2:4") in square blocks of 8, 16, 32 or 64 that are kept or pruned
        whole; None for one of them.
    saliency
        "taylor" (|W| mean |∂L/∂W|), "signed" (-W mean ∂L/∂W) or "magnitude" (|W|, for which no batch is used).
    normalised
        How layers compare: by the "sum" of scores, as in the authors' code, or by their "mean".
    skip
        Patterns of names of layers that are left as they are.
    loss
        The loss of a batch; by default that which the model returns.

    Returns
    -------
    Masks
        By names of layers. While `masks.held()` lasts, no optimizer changes a pruned weight.

    Raises
    ------
    ValueError
        For a target out of the pattern's reach, no batch, and gradients that are not finite; the model is then as it
        was.

    Examples
    --------
    >>> import torch
    >>> from crisp_attention import pruning
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32))
    >>> batches = [{"input_ids": torch.arange(16)[None], "labels": torch.tensor([1])}]
    >>> for target in (0.5, 0.7):
    ...     masks = pruning.step(model, batches, target, block_size=8)
    ...     with masks.held():
    ...         pass  # train
    >>> round(masks.sparsity, 2)
    0.72
    """
    check_one_of("saliency", saliency, SALIENCIES)
    check_one_of("normalised", normalised, NORMALISED)
    chosen = Pattern.parse(pattern, block_size)
    matrices = [each for each in matrices_of(model, skip).matrices if chosen.lacks(each) is None]
    if not matrices:
        raise ValueError(f"{type(model).__name__} has no layer that divides into {chosen}")
    check_target(matrices, chosen, target)
    gradients = Gradients(matrices)
    if saliency != "magnitude":
        _collect(model, matrices, batches, loss, gradients)
    before = Masks.of(matrices).kept
    masks = Masks(
        matrices, select(matrices, gradients.scores(saliency), chosen, target, before, normalised=normalised)
    )
    masks.zero()
    return masks


def _collect(
    model: nn.Module,
    matrices: Sequence[Matrix],
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    gradients: Gradients,
) -> None:
    with ExitStack() as stack, torch.enable_grad():
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        for each in matrices:
            stack.callback(each.weight.requires_grad_, each.weight.requires_grad)
            each.weight.requires_grad_(True)
        for batch in batches:
            gradients.add(loss(model, batch))
