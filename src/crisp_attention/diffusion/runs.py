"""The runs of a comparison in its folder: one model for each seed, one file for each variant of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import crisp_attention as crisp
from crisp_attention.diffusion.digits import Classifier, Digits
from crisp_attention.diffusion.model import build, generate, noisy
from crisp_attention.diffusion.options import LOSSES, TRAINED
from crisp_attention.diffusion.scores import held_out_loss, quality
from crisp_attention.diffusion.training import Told, finetune, pretrain
from crisp_attention.diffusion.variants import DENSE, LINEAR, SLA, SPARSE, SUM, Variant
from crisp_attention.errors import OptionError
from crisp_attention.files import write_json

ORDER = (DENSE, SLA, SPARSE, SUM, LINEAR)
SHOWN = 20  # generated digits that are kept
COUNTED = 16  # images whose attention is measured


@dataclass(frozen=True)
class Run:
    """What one variant of one seed gave."""

    seed: int
    label: str
    attention: str
    sparsity: float | None
    loss: str
    trained: str
    method: str
    losses: Mapping[int, float]
    accuracy: float
    frechet: float
    operations: float
    softmax_share: float
    linear_share: float
    seconds: float
    digits: str

    @property
    def final(self) -> float:
        """The held-out loss after the last step."""
        return self.losses[max(self.losses)]

    @property
    def softmax_pairs(self) -> float:
        """The share of pairs in the softmax part, where that is used."""
        return 0.0 if self.attention == LINEAR else self.softmax_share

    def images(self) -> Tensor:
        """The generated digits that were kept, bytes (N, 8, 8)."""
        return torch.frombuffer(bytearray.fromhex(self.digits), dtype=torch.uint8).reshape(-1, 8, 8)

    @classmethod
    def read(cls, file: Path) -> "Run":
        """From its file. Raises OptionError for one that is damaged."""
        try:
            found = json.loads(file.read_text())
            return cls(**found | {"losses": {int(step): loss for step, loss in found["losses"].items()}})
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"{file} is damaged ({error}): delete it to repeat the run", "output"
            ) from error


def file_of(folder: Path, variant: Variant, seed: int) -> Path:
    """Where a run is kept."""
    return folder / "runs" / f"{variant.name}-seed-{seed}.json"


def runs_in(folder: Path) -> list[Run]:
    """All runs of a folder, those of earlier commands too: by loss, training, sparsity, attention and seed."""
    found = [Run.read(file) for file in (folder / "runs").glob("*.json")]

    def place(run: Run) -> tuple[bool, bool, float, int, int]:
        sparsity = {DENSE: -1.0}.get(run.attention, 2.0) if run.sparsity is None else run.sparsity
        return (
            run.loss != LOSSES[0],
            run.trained != TRAINED[0],
            sparsity,
            ORDER.index(run.attention),
            run.seed,
        )

    return sorted(found, key=place)


def model_of(folder: Path, digits: Digits, seed: int, steps: int, told: Told) -> nn.Module:
    """The dense model of a seed, read from the folder or trained and kept there."""
    file, model = folder / "models" / f"dense-seed-{seed}.safetensors", build(seed)
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    pretrain(model, digits, steps, seed, told)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    save_file({name: each.contiguous() for name, each in model.state_dict().items()}, unfinished)
    unfinished.replace(file)
    return model


def make(
    dense: nn.Module,
    variant: Variant,
    seed: int,
    digits: Digits,
    classifier: Classifier,
    steps: int,
    samples: int,
    told: Told,
) -> Run:
    """Fine-tune a variant of a model and score it."""
    look: Callable[[nn.Module], Tensor] = lambda model: held_out_loss(model, digits)  # noqa: E731
    began = perf_counter()
    tuned = finetune(dense, variant, digits, steps, seed, look, told)
    seconds = perf_counter() - began
    images, classes = generate(tuned.model, samples, seed)
    good = quality(classifier, images, classes, digits)
    return Run(
        seed,
        variant.label,
        variant.attention,
        variant.sparsity,
        variant.loss,
        variant.trained,
        "dense" if variant.method is None else variant.method.spec,
        {step: float(each.mean()) for step, each in tuned.losses.items()},
        good.accuracy,
        good.frechet,
        *_costs(tuned.model, digits),
        seconds,
        bytes((127.5 * (images[:SHOWN, 0] + 1)).round().to(torch.uint8).flatten().tolist()).hex(),
    )


def keep(run: Run, file: Path) -> None:
    """Write a run into its file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(run))


def _costs(model: nn.Module, digits: Digits) -> tuple[float, float, float]:
    """Operations of attention relative to dense, and the shares of pairs in its softmax and its linear part."""
    images, classes = digits.held_out[:COUNTED], digits.classes[:COUNTED]
    steps = torch.full((len(images),), 500)
    batch: dict[str, Any] = noisy(images, classes, steps, torch.zeros_like(images))
    with torch.no_grad(), crisp.counting(model) as counted:
        model(**batch)
    with torch.no_grad(), crisp.measuring(model) as measured:
        model(**batch)
    table = measured.table()
    return (
        counted.total.total / counted.total.dense,
        float(1 - table["sparsity"].mean()),
        float(table["branch"].mean()),
    )
