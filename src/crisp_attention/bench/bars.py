"""The project's bars: the largest ratio to dense attention allowed for each case, and whether it held."""

from dataclasses import dataclass
from typing import Literal

from crisp_attention.bench.contender import CRISP
from crisp_attention.bench.peers import ENTMAX
from crisp_attention.bench.predicted import OURS
from crisp_attention.bench.results import Attention, Memory, Predicted, Pruned, Results, Situated, Step
from crisp_attention.bench.row_kinds import KINDS

CPU = {"heads": 12, "width": 64, "dtype": "float32", "device": "cpu"}
GPU = {"heads": 16, "width": 128, "dtype": "bfloat16", "device": "cuda"}
Batches = dict[int, int]  # length -> batch


@dataclass(frozen=True)
class Bar:
    """A row: the method of a part, the batch at each length, and the bars, None where there is none."""

    name: str
    part: Literal["attention", "step", "memory"]
    method: str
    sizes: Batches
    forward: float | None
    backward: float
    shape: dict[str, object]


@dataclass(frozen=True)
class Verdict:
    """The worst ratio over a row's lengths and where it was; `holds` is None if some were not measured."""

    bar: float
    worst: float | None
    length: int | None
    missing: tuple[int, ...]

    @property
    def holds(self) -> bool | None:
        """Whether all lengths are within the bar."""
        if self.worst is not None and self.worst > self.bar:
            return False
        return None if self.missing else True


def _alone(*lengths: int) -> Batches:
    return dict.fromkeys(lengths, 1)


BARS = (
    Bar("top-k, L 64, 128, B 32", "attention", "topk:sparsity=0.8", {64: 32, 128: 32}, 1.2, 1.0, CPU),
    Bar(
        "top-k, L 512 … 4,096",
        "attention",
        "topk:sparsity=0.8",
        _alone(512, 1024, 2048, 4096),
        1.2,
        1.0,
        CPU,
    ),
    Bar(
        "block top-k, L 2,048 … 8,192",
        "attention",
        "block_topk:sparsity=0.8",
        _alone(2048, 4096, 8192),
        0.28,
        0.28,
        CPU,
    ),
    Bar(
        "sparse + linear, L 8,192, 16,384",
        "attention",
        "sparse_linear:critical=0.05",
        _alone(8192, 16384),
        0.12,
        0.15,
        CPU,
    ),
    Bar(
        "entmax 1.5, L 512 … 4,096",
        "attention",
        "entmax:alpha=1.5",
        _alone(512, 1024, 2048, 4096),
        1.5,
        1.2,
        CPU,
    ),
    Bar(
        "MiniLM step, L 16 … 128, B 32",
        "step",
        "topk:sparsity=0.8",
        dict.fromkeys((16, 32, 64, 128), 32),
        None,
        1.05,
        CPU,
    ),
    Bar("memory, top-k", "memory", "topk:sparsity=0.8", _alone(16384), 1.2, 1.2, CPU),
    Bar(
        "memory, sparse + linear",
        "memory",
        "sparse_linear:critical=0.05",
        _alone(16384),
        None,
        1.3,
        CPU,
    ),
    Bar(
        "GPU, block top-k, L 32,768",
        "attention",
        "block_topk:sparsity=0.8",
        _alone(32768),
        0.25,
        0.28,
        GPU,
    ),
    Bar(
        "GPU, top-k, L 4,096 … 16,384",
        "attention",
        "topk:sparsity=0.8",
        _alone(4096, 8192, 16384),
        2.0,
        1.5,
        GPU,
    ),
)


# of attention between predicted blocks, forward: its time over that of our entmax of all pairs, over that of the entmax
# package, and the share of it that predicting takes
PREDICTED = {"ratio": 0.7, "to package": 0.1, "to predict": 0.25}


def predicted_ratios(each: Predicted) -> dict[str, float | None]:
    """What `PREDICTED` limits; None for what was not timed."""
    ratios = {timed.name: timed.ratio.median for timed in each.timed}
    package = ratios.get(ENTMAX)
    return {
        "ratio": ratios[OURS],
        "to package": None if package is None else ratios[OURS] / package,
        "to predict": each.predicting_share,
    }


# of pruned layers and models: by subject, size, pattern and target the largest ratio of time, of the layers' bytes in
# memory and in the file, and of the file's
UP, BLOCKS = "768 to 3072", "blocks of 32"
PRUNED: dict[tuple[str, str, str, float], tuple[float, float | None, float | None]] = {
    (UP, "512", BLOCKS, 0.9): (0.15, 0.15, None),
    (UP, "512", BLOCKS, 0.75): (0.35, None, None),
    (UP, "512", BLOCKS, 0.4): (1.0, None, None),
    (UP, "1", BLOCKS, 0.9): (0.35, None, None),
    ("MiniLM", "32 x 128", BLOCKS, 0.9): (0.5, 0.15, 0.62),
    ("MiniLM with block top-k", "8 x 512", BLOCKS, 0.9): (0.45, None, None),
    ("MiniLM with block top-k", "1 x 512", BLOCKS, 0.9): (0.45, None, None),
}


def bars_of(each: Pruned) -> tuple[float | None, float | None, float | None]:
    """What `PRUNED` says of a measurement, None where it says nothing."""
    return PRUNED.get((each.subject, each.size, each.pattern, each.target), (None, None, None))


# of situations: by row and size the largest ratio to the yardstick, forward and with the backward pass
Pair = tuple[float | None, float | None]
SITUATIONS: dict[tuple[str, str], Pair] = {
    ("window 129", "2,048"): (0.2, 0.2),
    ("window 257, causal, heads 32/8", "1,024"): (0.6, 0.5),
    ("window 257, causal, heads 32/8", "2,048"): (0.35, 0.35),
    ("blocks, causal", "1,024"): (0.8, 0.5),
    ("blocks, causal", "2,048"): (0.5, 0.5),
    ("top-k, causal mask", "2,048"): (0.9, 0.75),
    ("top-k, causal mask and padding", "2,048"): (0.9, 0.75),
    ("padded batch, top-k", "128 × 32"): (0.45, 0.35),
    ("padded batch, blocks", "128 × 32"): (0.6, 0.4),
    ("one token, top-k", "after 128"): (1.5, None),
    ("one token, top-k", "after 512"): (1.2, None),
    ("one token, top-k", "after 2,048"): (0.9, None),
    ("one token, blocks", "after 128"): (1.5, None),
    ("one token, blocks", "after 512"): (1.0, None),
    ("one token, blocks", "after 2,048"): (0.5, None),
    **{
        (f"decoder of 4 layers, {method}", size): (most, None)
        for method in ("blocks", "window")
        for size, most in (("after 128", 1.05), ("after 4,096", 0.8))
    },
    ("dense", "2,048"): (1.03, 1.03),
    ("top-k 0 %", "2,048"): (1.03, 1.03),
    ("top-k 50 %", "2,048"): (1.1, 1.0),
    **{("random 80 %", size): (1.3, 1.0) for size in ("512", "1,024")},
    **{(f"entmax{each}", size): (1.5, 1.0) for each in (" 1.25", ", learned") for size in ("512", "1,024")},
    **{(f"N:M {groups}", "512"): (1.3, 1.0) for groups in ("2:4", "8:64", "64:256")},
    ("top-p", "2,048"): (1.1, 0.8),
    **{(f"width {width}", "512"): (1.15, 1.15) for width in (8, 40, 72)},
    ("width 256", "2,048"): (1.0, 0.9),
    **{("long top-k", size): (0.85, 0.7) for size in ("8,192", "16,384")},
    **{(f"{rule}, {kind}", "1,024"): (1.3, 1.3) for rule in ("top-k", "top-p") for kind in KINDS},
}
MEMORY, MEMORY_LENGTH = 1.3, 8192  # the most memory of any method at so many tokens, as a ratio to dense
HOOKS = 25e-6  # seconds that they may add to the attention of a GPT written by hand
HOOKS_PER_CALL = 6e-6  # and for each call of torch inside an attention module of diffusers


def bar_of(each: Situated) -> float | None:
    """What `SITUATIONS` says of a measurement, None where it says nothing."""
    return SITUATIONS.get((each.row, each.size), (None, None))[each.backward]


def verdict(bar: Bar, results: Results, backward: bool) -> Verdict | None:
    """The verdict on a bar in one direction, None if it has none there."""
    allowed = bar.backward if backward else bar.forward
    if allowed is None:
        return None
    ratios = _ratios(bar, results, backward)
    worst = max(ratios, key=ratios.__getitem__, default=None)
    missing = tuple(length for length in bar.sizes if length not in ratios)
    return Verdict(allowed, None if worst is None else ratios[worst], worst, missing)


def _ratios(bar: Bar, results: Results, backward: bool) -> dict[int, float]:
    """Our ratio at each of the bar's lengths that was measured as the bar says."""
    if bar.part == "step":
        known = [
            (
                each.length,
                each.batch,
                {"dtype": each.dtype, "device": each.device},
                each.method,
                crisp_ratio(each),
            )
            for each in results.step
        ]
    else:
        cells = results.attention if bar.part == "attention" else results.memory
        known = [
            (
                each.shape["length"],
                each.shape["batch"],
                each.shape,
                each.method,
                each.ratio if isinstance(each, Memory) else crisp_ratio(each),
            )
            for each in cells
            if each.backward == backward
        ]
    return {
        length: ratio
        for length, batch, shape, method, ratio in known
        if method == bar.method
        and bar.sizes.get(length) == batch
        and ratio is not None
        and all(shape[name] == value for name, value in bar.shape.items() if name in shape)
    }


def crisp_ratio(cell: Attention | Step) -> float | None:
    """The median ratio of our own contender, None if it was not timed."""
    return next((timed.ratio.median for timed in cell.timed if timed.name == CRISP), None)
