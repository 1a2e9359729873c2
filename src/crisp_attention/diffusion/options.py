"""What `crisp demo diffusion` can be asked for. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from crisp_attention.flags import Flag

LOSSES, TRAINED = ("diffusion", "distillation"), ("all", "projection")


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """Train a small diffusion transformer on handwritten digits, make its attention sparse, fine-tune, and compare.

    The model is diffusers' DiT, conditioned on the class, with a token for each of the 64 pixels. From the same weights
    dense attention, SLA (crisp.SparseLinear), its critical blocks alone, its linear part alone and their plain sum are
    fine-tuned on the same batches. Measured are the denoising loss on held-out images, how many generated digits a
    classifier recognises, and the Fréchet distance of its features to those of held-out digits. Ends with a report.
    Takes minutes on two cores. Needs diffusers.

    For example: crisp demo diffusion --output runs/diffusion
    """

    output: Path = Path("runs/diffusion")
    """Folder for the runs and the report. Run the same command again to continue."""

    seeds: int = 1
    """How many models are trained, each with all variants."""

    sparsity: Annotated[tuple[str, ...], arg(metavar="FLOAT ...", help_behavior_hint="(default: 0.9)")] = (
        "0.9",
    )
    """Shares of blocks that are not critical, such as 0.8,0.9. Whole blocks are kept: what is reached is a bit less."""

    loss: Annotated[tuple[str, ...], arg(metavar="LOSS ...", help_behavior_hint="(default: diffusion)")] = (
        "diffusion",
    )
    """Fine-tune by the loss of diffusion, by what the dense model predicts, or by each (diffusion,distillation)."""

    train: Annotated[tuple[str, ...], arg(metavar="WHAT ...", help_behavior_hint="(default: all)")] = ("all",)
    """Fine-tune all weights (all), of SLA the projections alone (projection), or once each (all,projection)."""

    steps: int = 250
    """Steps of fine-tuning. The loss is measured at 0, 50, 100, 250, 500, … of them, and at the end."""

    pretraining: int = 1000
    """Steps in which the dense model is trained from scratch."""

    block_size: int = 2
    """Tokens in a block."""

    samples: int = 300
    """Digits that are generated of each variant."""

    quick: Flag = False
    """A few steps and digits, to see that everything works. Its numbers say nothing."""
