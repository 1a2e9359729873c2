"""Pruning once more: a step of a loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from crisp_attention.methods.checks import check_one_of
from crisp_attention.models.persistence import PRUNED
from crisp_attention.pruning.masks import Masks
from crisp_attention.pruning.matrices import KINDS, Matrix, matrices_of
from crisp_attention.pruning.patterns import Pattern
from crisp_attention.pruning.saliency import SALIENCIES, Gradients
from crisp_attention.pruning.selection import NORMALISED, check_target, select
from crisp_attention.pruning.straight_through import ESTIMATORS, StraightThrough

HALF_SCALE = 2.0**10  # of losses, so that gradients do not vanish in float16
Batch = Mapping[str, Any]
Target = float | Mapping[str, float]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that models of transformers return for a batch with labels. Raises ValueError if there is none."""
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError("the model returns no loss: expected labels in every batch, or `loss` to be given")
    return loss


def step(
    model: nn.Module,
    batches: Iterable[Batch],
    target: Target,
    *,
    pattern: str | None = "2:4",
    block_size: int | None = 32,
    saliency: str = "taylor",
    normalised: str = "sum",
    score_kept: bool = False,
    ste: str = "none",
    before: Masks | None = None,
    skip: Sequence[str] = (),
    loss: Callable[[nn.Module, Batch], Tensor] = loss_of,
) -> Masks:
    """Prune the weights that matter least to the loss of some batches, in place, and return which are kept.

    For a loop of your own: prune a little, train inside `masks.held()`, prune more. What is zero already stays pruned,
    so that a loop can be interrupted and a pruned model pruned again; nothing but the zeros has to be saved. Gradients
    are taken in evaluation mode; modes and the parameters' own gradients are left as they were. In several processes
    (torch.distributed) each gives its own batches, and all keep the same weights.

    Parameters
    ----------
    model
        Linear layers, convolutions and GPT-2's `Conv1D` are pruned; heads, the first convolution, embeddings and what
        they share, biases, and sizes that the pattern does not divide are not.
    batches
        Mappings of what the model is called with. Give those of the classes that are to be kept.
    target
        The share of zeros among the weights of all layers that are pruned, those that are there included; or a share
        for each kind of layer, ``{"attention": 0.6, "feed-forward": 0.9, "convolution": 0.8}``: kinds that are not
        named are left as they are.
    pattern, block_size
        At most N of each M neighbouring inputs ("2:4") in square blocks of 8, 16, 32 or 64 that are kept or pruned
        whole; None for one of them.
    saliency
        "taylor" (|W| mean |∂L/∂W|), "signed" (-W mean ∂L/∂W) or "magnitude" (|W|, for which no batch is used).
    normalised
        How layers compare: by the "sum" of scores, as in the authors' code, or by their "mean".
    score_kept
        Whether blocks are scored by those weights alone that N:M keeps.
    ste
        "none": what is pruned stays pruned. "ste": inside `held()` gradients pass through the masks to dense weights,
        and N:M is chosen again after every step of an optimizer; a weight or block may come back. "sr-ste": the same,
        and pruned weights decay.
    before
        With `ste`, the masks of the step before, which hold the dense weights.
    skip
        Patterns of names of layers that are left as they are, such as "*.layer.0.*".
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
    check_one_of("ste", ste, ESTIMATORS)
    if before is not None and ste == "none":
        raise ValueError("before has no meaning without ste: the zeros of a model are its masks")
    chosen = Pattern.parse(pattern, block_size)
    groups = groups_of(model, target, chosen, skip)
    matrices = [each for group, _ in groups for each in group]
    gradients = Gradients(matrices)
    if saliency != "magnitude":
        _collect(model, matrices, batches, loss, gradients)
    if ste != "none":
        _restore(matrices, before)
    kept: dict[str, Tensor] = {}
    pruned = Masks.of(matrices).kept if ste == "none" else None
    scores = gradients.scores(saliency)
    for group, share in groups:
        kept |= select(group, scores, chosen, share, pruned, normalised=normalised, score_kept=score_kept)
    if ste == "none":
        masks = Masks(matrices, kept)
    else:
        dense = {each.name: each.weight.detach().clone() for each in matrices}
        masks = StraightThrough(matrices, kept, dense, chosen, gradients.importance(saliency), ste)
    masks.zero()
    mark(model, chosen)
    return masks


def mark(model: nn.Module, pattern: Pattern) -> None:
    """Write into the config of a transformers model that it is pruned, so that nothing takes it for dense."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_diff_dict"):
        setattr(config, PRUNED, str(pattern))


def _restore(matrices: Sequence[Matrix], before: Masks | None) -> None:
    """Give the model the dense weights that an earlier step has kept, where there was one."""
    if before is None:
        return
    if not isinstance(before, StraightThrough) or set(before.dense) != {each.name for each in matrices}:
        raise ValueError(
            "before must be the masks of a step of the same layers with ste, which hold dense weights"
        )
    with torch.no_grad():
        for each in matrices:
            each.weight.copy_(before.dense[each.name])


def groups_of(
    model: nn.Module, target: Target, pattern: Pattern, skip: Sequence[str] = ()
) -> list[tuple[list[Matrix], float]]:
    """The matrices of a model that share a target, and the target.

    Raises ValueError if there is none, or a target is out of reach.
    """
    found = matrices_of(model, skip)
    matrices = [each for each in found.matrices if pattern.lacks(each) is None]
    if not matrices:
        reasons = dict.fromkeys([*map(pattern.lacks, found.matrices), *found.skipped.values()])
        raise ValueError(
            f"{type(model).__name__} has no layer to prune by {pattern}; its layers: "
            + ("; ".join(str(each) for each in reasons) or "none")
        )
    groups = [(matrices, target)] if not isinstance(target, Mapping) else []
    for kind, share in target.items() if isinstance(target, Mapping) else ():
        check_one_of("target", kind, KINDS)
        if not (own := [each for each in matrices if each.kind == kind]):
            raise ValueError(f"target names {kind}; {type(model).__name__} has no such layer to prune")
        groups.append((own, share))
    for group, share in groups:
        check_target(group, pattern, share)
    return groups


def left_of(model: nn.Module, target: Target, pattern: Pattern, skip: Sequence[str] = ()) -> dict[str, str]:
    """The layers with weights that are left as they are, each with the reason."""
    found = matrices_of(model, skip)
    left = dict(found.skipped)
    for each in found.matrices:
        if (reason := pattern.lacks(each)) is not None:
            left[each.name] = reason
        elif isinstance(target, Mapping) and each.kind not in target:
            left[each.name] = f"no target for {each.kind}"
    return left


def masks_of(model: nn.Module, skip: Sequence[str] = ()) -> Masks:
    """The masks of a model as it is: what is zero is pruned. Inside their `held()` a pruned model can be trained.

    Examples
    --------
    >>> import torch
    >>> from crisp_attention import pruning
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    >>> pruned = pruning.step(model, [], 0.75, pattern=None, block_size=16, saliency="magnitude", skip=["2"])
    >>> with pruning.masks_of(model, skip=["2"]).held():
    ...     pass  # train
    """
    return Masks.of(matrices_of(model, skip).matrices)


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
        halves = any(each.weight.dtype == torch.float16 for each in matrices)
        scale = HALF_SCALE if halves else 1.0
        for batch in batches:
            gradients.add(loss(model, batch) * scale, scale=scale)
        gradients.share()
