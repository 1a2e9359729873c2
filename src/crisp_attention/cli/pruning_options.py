"""What `crisp prune` can be asked for. Imports nothing heavy, for the sake of `crisp --help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crisp_attention.cli.options import TrainingOptions
from crisp_attention.flags import Flag, Real, Text, Texts


@dataclass(frozen=True, kw_only=True)
class PruneOptions(TrainingOptions):
    """Prune a trained classifier for the classes that you need, and measure what that saves on this machine.

    CRISP pruning (arXiv 2311.14272), of weights: in each of some steps, gradients on the examples of the classes say
    which blocks of weights, and which in each group of the others, matter least; these become zero and stay so while
    the model is trained. Keeps model, results and a report of the layers in one folder, as `crisp finetune` does, and
    a compressed model that skips the zeros.

    For example:
      crisp prune --model runs/first --dataset data/questions --classes 3,5,8 --target 0.9 --output runs/pruned
    """

    method: Text = None
    """Sparse attention at the same time: a method and its options, such as `topk:sparsity=0.8`. Default: none."""

    output: Path
    """Folder for the run: config.json, metrics.json, predictions, layers.csv, the pruned model, the compressed one."""

    target: Real = None
    """The share of zeros among the weights of all layers that are pruned. Default: 0.9, unless kinds of layers have
    their own."""

    attention: Real = None
    """In place of --target: the share in layers of attention. Layers without a share are left as they are."""

    feed_forward: Real = None
    """In place of --target: the share in other linear layers."""

    convolution: Real = None
    """In place of --target: the share in convolutions."""

    pattern: str = "2:4"
    """At most N of each M neighbouring inputs of a block; `none` for blocks alone, whose layers take about half the
    time on a CPU at the same share of zeros."""

    block_size: int = 32
    """Of square blocks that are kept or pruned whole: 8, 16, 32 or 64; 0 for N:M alone, which saves no time here."""

    steps: int = 5
    """How often there is pruning."""

    epochs: float = 1.0
    """Passes over the training examples after each pruning."""

    learning_rate: Real = None
    """Peak learning rate (AdamW, linear decay). Default: 1e-3, with which what is pruned recovers; with --resume that
    of the run."""

    shape: Literal["linear", "cosine", "cubic", "constant"] = "linear"
    """How the share of zeros rises from step to step."""

    saliency: Literal["taylor", "signed", "magnitude"] = "taylor"
    """What a weight matters: |weight x gradient|, minus weight x gradient (weights that hurt go first), or |weight|."""

    gradients: Literal["classes", "all", "random"] = "classes"
    """Of which examples: of your classes, of all, or of as many random other ones (a control)."""

    examples: int = 512
    """How many training examples gradients are taken on; of no meaning with --saliency magnitude."""

    normalised: Literal["sum", "mean"] = "sum"
    """How layers compare: by the sum of what their weights matter, or by the mean."""

    score_kept: Flag = False
    """Score blocks by those weights alone that N:M keeps."""

    ste: Literal["none", "ste", "sr-ste"] = "none"
    """Whether pruned weights are trained on and may come back: straight-through gradients, and with decay."""

    skip: Texts = ()
    """Layers that are left as they are: patterns of names, such as `*.layer.0.*`."""

    seed: int = 0
    """Seed of the order of examples, dropout and drawn classes."""

    discard_model: Flag = False
    """Keep no model and measure no layers, only the other results."""

    overwrite: Flag = False
    """Replace the run in the output folder."""

    resume: Flag = False
    """Continue the interrupted run in the output folder, from its last complete checkpoint."""
