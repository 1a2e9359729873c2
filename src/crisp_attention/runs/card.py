"""The model card: a README.md next to a saved model that says what the model is and how it was trained."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crisp_attention.files import versions
from crisp_attention.methods.budgets import Budgets
from crisp_attention.runs.spec import RunSpec
from crisp_attention.runs.task import Target

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def write_card(
    folder: Path,
    spec: RunSpec,
    target: Target,
    metrics: Mapping[str, Any],
    command: Sequence[str],
    *,
    images: bool,
) -> None:
    """Write README.md into the folder of a model, unless there is one."""
    file = folder / "README.md"
    if not file.exists():
        file.write_text(model_card(spec, target, metrics, command, images=images), encoding="utf-8")


def model_card(
    spec: RunSpec, target: Target, metrics: Mapping[str, Any], command: Sequence[str], *, images: bool
) -> str:
    """The text of the card, with the numbers of the run."""
    name = Path(spec.model).name or spec.model
    attention = "dense attention" if spec.is_dense else "sparse attention"
    used = versions()
    return f"""---
{_header(spec, target, images)}---

# {name}, fine-tuned with {attention}

`{spec.model}`, fine-tuned on `{spec.data.source}` with crisp-attention {used["crisp-attention"]}.

## Results

{_results(target, metrics)}

The main metric is {target.metric(metrics["metric"]).title}.

## Attention

{_attention(spec, metrics)}

## Training

{spec.recipe.epochs:g} epochs, batches of {spec.recipe.batch_size}, learning rate {spec.recipe.learning_rate:g}, \
seed {spec.seed}; {metrics["steps"]:,} steps on {metrics["device"]}, torch {used["torch"]}, \
transformers {used["transformers"]}.
{_command(command)}
## How to load it

```python
import crisp_attention as crisp

model = crisp.load("FOLDER")  # this folder{"" if spec.is_dense else ", sparse as it was trained"}
```
{_plain(spec)}"""


def _header(spec: RunSpec, target: Target, images: bool) -> str:
    lines = ["library_name: transformers", "tags:", "- crisp-attention"]
    lines += [] if spec.is_dense else ["- sparse-attention"]
    lines.append(f"pipeline_tag: {'image' if images else 'text'}-classification")
    if HUB_ID.fullmatch(spec.model) and not Path(spec.model).exists():
        lines.append(f"base_model: {spec.model}")
    data = str(spec.data.source).partition(":")[0]
    if HUB_ID.fullmatch(data) and data != "builtin" and not Path(data).exists():
        lines += ["datasets:", f"- {data}"]
    lines += ["metrics:", *(f"- {each.name}" for each in target.metrics)]
    return "".join(f"{line}\n" for line in lines)


def _results(target: Target, metrics: Mapping[str, Any]) -> str:
    rows = [["split", "examples", *(each.title for each in target.metrics), "loss"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for split in ("train", "validation", "test"):
        if seen := metrics.get(split):
            loss = "not finite" if seen["loss"] is None else f"{seen['loss']:.4f}"
            scores = [each.shown(seen[each.name]) for each in target.metrics]
            rows.append([split, f"{seen['examples']:,}", *scores, loss])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _attention(spec: RunSpec, metrics: Mapping[str, Any]) -> str:
    if spec.is_dense:
        return "Dense: the model's own attention."
    method = (
        "budgets for every layer and head" if isinstance(spec.method, Budgets) else f"`{spec.method.spec}`"
    )
    where = f", layers {' '.join(spec.layers)}" if spec.layers else ""
    when = "" if spec.phase == "always" else f", in {spec.phase} only"
    said = [f"Method: {method}{where}{when}."]
    if spec.schedule is not None:
        rise = spec.schedule
        said.append(
            f"The sparsity rose from {rise.initial:g} to {rise.final:g} ({rise.shape}) between {rise.begin:.0%} and "
            f"{rise.end:.0%} of training."
        )
    if metrics["kept_mass"] is not None:
        said.append(
            f"Achieved sparsity {metrics['achieved_sparsity']:.1%}, kept softmax mass {metrics['kept_mass']:.1%} (in "
            f"evaluation, mean over all layers and heads)."
        )
    return " ".join(said)


def _command(command: Sequence[str]) -> str:
    return f"\n```sh\n{shlex.join(command)}\n```\n" if command else ""


def _plain(spec: RunSpec) -> str:
    if spec.is_dense:
        return ""
    return "\n`from_pretrained` of transformers loads the same weights with dense attention.\n"
