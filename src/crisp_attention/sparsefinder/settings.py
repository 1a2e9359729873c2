"""What the study compares: the sweeps of every variant of Sparsefinder, and of what it is compared with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from torch import Tensor

from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.layouts import Layout, Sparsefinder
from crisp_attention.methods.layouts.sparsefinder.fixed import check_fixed, fixed_pairs
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.spec import parse

# the settings that the paper compares (arXiv 2109.12188) and a few more: distances, buckets, clusters; windows and both
# ends are or-ed in, and so they are with hashing and with clusters of what was not projected, to compare like with like
THRESHOLDS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10)
BUCKETS = (2, 4, 8, 12, 16, 20)
CLUSTERS, TOPS = (2, 4, 6, 8, 10, 12, 16, 20), (1, 2)
WINDOWS = (0, 1, 3, 7, 11, 19, 27)
BANDS = (1, 3, 5, 7, 9, 11, 15, 19, 23, 27)
WINDOW = 3  # of the main settings
T = TypeVar("T")


@dataclass(frozen=True)
class Ends(Layout):
    """What Sparsefinder shows whatever it predicts: a window, the first tokens and, in encoders, the last ones."""

    window: int = 3
    global_tokens: int = 1

    def __post_init__(self) -> None:
        check_fixed(self.window, self.global_tokens)

    def visible(self, rows: Rows) -> Tensor:
        return rows.valid & fixed_pairs(rows, self.window, self.global_tokens)


@dataclass(frozen=True)
class Setting:
    """A point of the study: a layout, and the curve that it is on.

    `main`: the model is evaluated with it. `learned`: it is a variant of Sparsefinder, not compared with it.
    """

    variant: str
    layout: Layout
    main: bool = True

    @property
    def name(self) -> str:
        """As in the tables, `sparsefinder:variant=kmeans:clusters=8`."""
        return str(Method(self.layout))

    @property
    def learned(self) -> bool:
        return isinstance(self.layout, Sparsefinder)

    @property
    def is_fitted(self) -> bool:
        """Whether its layout has something to fit."""
        return bool(self.layout.parameters(Shape(1, 1, 1)))

    def at(self, seed: int) -> Layout | None:
        """Its layout for a seed of the study; None if the seed changes nothing, and is not the first."""
        if any(each.name == "seed" for each in fields(self.layout)):
            return replace(self.layout, seed=seed)  # type: ignore[call-arg]
        return self.layout if self.is_fitted or seed == 0 else None


# by curve
BASELINES: dict[str, tuple[str, ...]] = {
    "window": tuple(f"window:width={width}" for width in BANDS),
    "longformer": tuple(f"window:width={width}:global_tokens={n}" for n in (1, 2) for width in BANDS),
    "bigbird": tuple(
        f"bigbird:width={width}:random_blocks={blocks}" for width in (3, 7, 11) for blocks in (1, 2, 3, 4, 5)
    ),
    "strided": tuple(f"strided:stride={stride}" for stride in (4, 6, 8, 10, 12, 16, 20)),
    "lsh": tuple(
        f"lsh:buckets={n}:rounds={r}:global_tokens=1" for n in (2, 4, 8, 16, 32, 64) for r in (1, 4)
    ),
    "random_pairs": tuple(f"random_pairs:sparsity={share}" for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)),
    "routing": tuple(
        f"routing:clusters={n}:top={top}" for n in CLUSTERS for top in TOPS if top < n
    ),
}  # fmt: skip
ENDS = "window + ends"


def settings(rank: int = 4, *, quick: bool = False) -> list[Setting]:
    """All settings of the study: those of Sparsefinder, then those that it is compared with."""
    check_whole("rank", rank, 1)
    windows = (WINDOW,) if quick else WINDOWS
    found = [Setting(ENDS, Ends(width)) for width in _few(BANDS, quick)]
    variants: dict[str, list[Layout]] = {**_variants(rank)}
    variants |= {variant: [parse(spec).layout for spec in specs] for variant, specs in BASELINES.items()}
    for variant, layouts in variants.items():
        for layout in _few(layouts, quick):
            if any(each.name == "window" for each in fields(layout)):
                found += [
                    Setting(variant, replace(layout, window=window), main=window == WINDOW)  # type: ignore[call-arg]
                    for window in windows
                ]
            else:
                found.append(Setting(variant, layout))
    return found


def _variants(rank: int) -> dict[str, list[Layout]]:
    ranks = dict.fromkeys((rank, max(1, rank // 4)))
    return {
        "distance": [Sparsefinder("distance", rank, threshold=each) for each in THRESHOLDS],
        # each coordinate adds pairs of its own
        "quantize": [Sparsefinder("quantize", each, bucket_size=size) for each in ranks for size in BUCKETS],
        "kmeans": [Sparsefinder("kmeans", rank, n, top) for n in CLUSTERS for top in TOPS if top < n],
    }


def _few(of: Iterable[T], quick: bool) -> Iterator[T]:
    """Every one, or the first, the middle and the last one."""
    every = list(of)
    yield from every if not quick or len(every) < 3 else (every[0], every[len(every) // 2], every[-1])
