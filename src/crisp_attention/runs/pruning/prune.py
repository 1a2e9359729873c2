"""`crisp.prune`: a model in memory, pruned while it is fine-tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from rich.console import Console
from transformers import PreTrainedModel, Trainer, default_data_collator, set_seed

from crisp_attention.errors import OptionError
from crisp_attention.methods.checks import check_number, check_one_of
from crisp_attention.methods.method import Method
from crisp_attention.pruning.matrices import KINDS
from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.prepare import build
from crisp_attention.runs.progress import RunProgress
from crisp_attention.runs.pruning import LEARNING_RATE
from crisp_attention.runs.pruning.given import Collate, Rows, check_classifier, task_of, try_examples
from crisp_attention.runs.pruning.pruned import PrunedModel
from crisp_attention.runs.pruning.treatment import NONE, Pruning
from crisp_attention.runs.sources import Source
from crisp_attention.runs.spec import Data, Recipe, RunSpec
from crisp_attention.runs.terminal import quietly


def prune(
    model: PreTrainedModel,
    train: Rows,
    *,
    classes: Sequence[str | int] = (),
    target: float | Mapping[str, float] = 0.9,
    pattern: str | None = "2:4",
    block_size: int | None = 32,
    steps: int = 5,
    epochs: float = 1.0,
    evaluation: Rows | None = None,
    saliency: str = "taylor",
    gradients: str = "classes",
    examples: int = 512,
    shape: str = "linear",
    normalised: str = "sum",
    score_kept: bool = False,
    ste: str = "none",
    skip: Sequence[str] = (),
    collate: Collate = default_data_collator,
    batch_size: int = 32,
    learning_rate: float = LEARNING_RATE,
    training: Mapping[str, Any] | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> PrunedModel:
    """Prune a classifier of transformers for some of its classes, in place, step by step and training in between.

    CRISP pruning (arXiv 2311.14272, sections 3 and 4). In each step gradients on examples of the classes say what every
    weight matters; in each group of M inputs the N that matter most are kept, and of all blocks those that matter
    least are pruned, as many in every row of a layer. What is pruned stays zero. Heads, embeddings, the first
    convolution and biases are left as they are, and so is attention, dense or sparse.

    Parameters
    ----------
    model
        A trained classifier.
    train
        Its encoded examples with their class as ``labels``; of all classes, where `gradients` asks for those.
    classes
        The classes that are needed, by name or number; none for all. The model is trained on their examples alone and
        keeps its outputs.
    target
        The share of zeros among the weights of all layers that are pruned, N:M included; or a share for each kind of
        layer, ``{"attention": 0.6, "feed-forward": 0.9}``.
    pattern, block_size
        At most N of M neighbouring inputs, in square blocks of 8, 16, 32 or 64; None for one of them.
    steps, epochs
        How often there is pruning, and how long the model is trained after each.
    evaluation
        Examples on which accuracies are measured before, during and after.
    saliency, normalised, score_kept, ste, skip
        As in `crisp_attention.pruning.step`.
    gradients, examples
        Of which examples: of the "classes", of "all", or of as many "random" other classes, a control; and how many.
    shape
        How the share of zeros rises from step to step.
    collate
        Makes a batch of examples; where they differ in length, transformers' `DataCollatorWithPadding(tokenizer)`.
    batch_size, learning_rate, training
        Of fine-tuning; and other fields of `transformers.TrainingArguments`. What is pruned recovers at a larger rate
        than that of fine-tuning.
    seed
        Of the order of examples, dropout and random classes.
    verbose
        Whether progress is printed to standard error.

    Returns
    -------
    PrunedModel
        The model and what became of its accuracy; `.report()` measures what was saved. Interrupted, the model is in
        evaluation mode too, and what has been pruned and learned so far stays.

    Raises
    ------
    OptionError, DataError
        Before anything is pruned: for a model that is no classifier, rows that it cannot read, a target out of the
        pattern's reach, classes that do not exist or have no example, and layers that do not divide.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> sizes = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=64, num_labels=4))
    >>> train = [{"input_ids": [3, each % 4 + 4], "labels": each % 4} for each in range(64)]
    >>> pruned = crisp.prune(model, train, classes=[1, 2], target=0.75, evaluation=train, verbose=False)
    >>> f"{pruned.sparsity:.2f}"
    '0.75'
    """
    console = Console(stderr=True, quiet=not verbose)
    data = Data(source="", classes=classes)  # type: ignore[arg-type]
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        training={} if training is None else training,
    )
    if not callable(collate):
        raise OptionError(f"collate must make a batch of a list of examples, got {collate!r}", "collate")
    own = target if isinstance(target, Mapping) else {"sparsity": target}
    try:
        if not own:
            raise ValueError(f"target must be a share, or one for some of {', '.join(KINDS)}, got {target}")
        for name, share in own.items():
            if isinstance(target, Mapping):
                check_one_of("target", name, KINDS)
            check_number("target", share, "[0, 1)")
        treatment = Pruning(
            **{name.replace("-", "_"): share for name, share in own.items()},
            pattern=NONE if pattern is None else pattern,
            block_size=0 if block_size is None else block_size,
            steps=steps,
            shape=shape,
            saliency=saliency,
            gradients=gradients,
            examples=examples,
            normalised=normalised,
            score_kept=score_kept,
            ste=ste,
            skip=skip,  # type: ignore[arg-type]
        )
        check_classifier(model)
        treatment.apply(model)
    except OptionError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error
    during = "no" if evaluation is None else "epoch"
    task = task_of(model, train, evaluation, data.classes)
    spec = RunSpec(
        model=type(model).__name__,
        data=Data(source=""),
        method=Method(),
        recipe=replace(
            recipe,
            epochs=steps * epochs,
            training={"save_strategy": "no", "eval_strategy": during, **recipe.training},
        ),
        seed=seed,
        treatment=treatment,
    )
    source = Source(model, lambda rows: rows, collate, None)
    progress = RunProgress(console, task.target.metrics[0])
    with quietly(), TemporaryDirectory() as folder:
        arguments = training_arguments(spec, Path(folder) / "checkpoints")
        arguments.eval_on_start, arguments.remove_unused_columns = False, True
        pruning = treatment.callbacks(source, task, arguments)
        try_examples(source, task)
        trainer, _ = build(source, task, arguments, [*pruning, progress])
        set_seed(seed)
        scored = (*task.target.scored, "loss")
        with progress:
            try:
                before = _scores(trainer, progress, "before", scored)
                trainer.train()
                after = _scores(trainer, progress, "after", scored)
            finally:
                for each in pruning:
                    each.close()
                model.eval()
    return PrunedModel(model, treatment, before, after, _history(trainer, scored))


def _history(trainer: Trainer, names: Sequence[str]) -> pd.DataFrame:
    """The scores that were measured during training, and the zeros that there were."""
    columns = {f"eval_{name}": name for name in names}
    rows = [each for each in trainer.state.log_history if columns.keys() & each.keys()]
    frame = pd.DataFrame(rows, columns=["step", "epoch", "sparsity", *columns])
    return frame.rename(columns=columns)


def _scores(trainer: Trainer, progress: RunProgress, phase: str, names: Sequence[str]) -> dict[str, float]:
    if trainer.eval_dataset is None:
        return {}
    progress.phase = phase
    rows: Any = trainer.eval_dataset
    found: Any = trainer.predict(rows, metric_key_prefix=phase).metrics
    return {name: found[f"{phase}_{name}"] for name in names}
