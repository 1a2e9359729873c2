"""What `crisp bench` can be asked for. Imports nothing heavy, for the sake of `crisp --help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from crisp_attention.flags import Count, Flag, Texts

Counts = Annotated[tuple[int, ...], arg(metavar="INT ...", help_behavior_hint="")]
Part = Literal[
    "attention",
    "decoders",
    "generation",
    "padded",
    "rows",
    "step",
    "memory",
    "first-call",
    "hooks",
    "pruning",
    "sparsefinder",
]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class BenchOptions:
    """Measure what sparse attention and pruned weights cost on this machine, as ratios to torch's dense ones.

    All contenders take turns in one run. Prints tables, and at the end which of the project's bars hold; writes
    bench.json, bench.html (a page with all of it) and, if the part attention is measured, bench.svg and bench.png (its
    time against length).

    For example:
      crisp bench --quick --output runs/bench
    """

    output: Path = Path("runs/bench")
    """Folder for the numbers, the page and the pictures; what an earlier run left there is replaced."""

    quick: Flag = False
    """Few lengths and rounds, no first calls: about a minute, longer with --text; indicative numbers only."""

    learn: Flag = False
    """Measure only which kernel is the fastest here for which calls, in two minutes (CUDA takes longer to compile), and
    keep that in a file that later programs take kernels by: among the user's caches, or in the folder that CRISP_CACHE
    names. Takes --device and --threads alone."""

    parts: Annotated[tuple[Part, ...] | None, arg(metavar="PART ...", help_behavior_hint="")] = None
    """What to measure. Default: all that can be; with --quick
    neither decoders, first-call nor hooks.
    attention: alone, against length;
    decoders: windows, blocks and top-k under causality;
    generation: one token with a cache;
    padded: a batch with padding;
    rows: every rule; wide, odd and long rows, and rows
    that are not normal;
    step: of fine-tuning a model;
    memory: its peak, each method in a process of its own;
    first-call: compilation;
    hooks: what it costs to reach the attention of any
    model, such as your own;
    pruning: layers and a model with pruned weights;
    sparsefinder: attention between predicted blocks, which
    needs --text.
    Methods and shapes of decoders, generation, padded and
    rows are fixed: of the options below they take
    --threads and --rounds."""

    text: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """A file of text, of at least 54,000 tokens (9,000 with
    --quick), needed by the part sparsefinder: it measures
    on MiniLM's queries and keys for it, as random ones
    have no pairs to predict. Of the options below it takes
    --sparsity, --threads and --rounds."""

    method: Texts = ()
    """Methods, by name (made as sparse as --sparsity) or with options, such as `block_topk:block_size=128`.
    Default: topk, block_topk, entmax, topp, threshold, nofm, sparse_linear (with 5 % of its blocks critical)."""

    lengths: Counts = ()
    """Tokens in a sequence, for the attention part. Default: 16 to 8,192, by method."""

    batch: Count = None
    """Sequences in a batch. Default: 32 up to 128 tokens, 1 beyond."""

    heads: Count = None
    """Attention heads. Default: 12; on CUDA 16."""

    width: Count = None
    """Width of a head. Default: 64; on CUDA 128."""

    sparsity: float = 0.8
    """Share of pairs to drop, in [0, 1)."""

    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, arg(metavar="DTYPE", help_behavior_hint="")
    ] = None
    """float32, bfloat16 or float16. Default: float32; on CUDA bfloat16."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    threads: Count = None
    """Threads to compute with on the CPU. Default: as many as torch takes."""

    rounds: Count = None
    """How often each contender is timed at most; less often where that takes too long. Default: 30, with --quick 5."""
