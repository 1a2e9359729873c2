"""How long a pruned MiniLM takes for each kind and share of zeros of the study on TREC, as a ratio to the dense one.

python -m benchmarks.pruning_times --model runs/pruning/minilm-whole --output docs/studies/pruning-times.json
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

import crisp_attention as crisp
from crisp_attention.bench.contender import CRISP, DENSE
from crisp_attention.bench.pruned import check
from crisp_attention.bench.results import machine
from crisp_attention.bench.rounds import Effort, clock_of, compared, interleaved, warm_up
from crisp_attention.files import write_json
from crisp_attention.pruning import step

BATCH, TOKENS = 32, 16
CASES = ((0.5, "2:4"), (0.75, "2:4"), (0.9, "2:4"), (0.5, "none"), (0.75, "none"), (0.9, "none"))


@dataclass(frozen=True)
class Options:
    """Prune by magnitude, compress, and time batches of 32 sentences of 16 tokens."""

    model: Path
    """A run of MiniLM."""
    output: Path
    """The file to write."""
    threads: int = 2
    """Threads to compute with."""


@torch.no_grad()
def main(options: Options) -> None:
    """Time every case, by turns with the dense model."""
    torch.set_num_threads(options.threads)
    tokens = torch.randint(1000, 20000, (BATCH, TOKENS))
    found = []
    for share, pattern in CASES:
        dense = crisp.load(options.model / "model").eval()
        step(dense, [], share, pattern=None if pattern == "none" else pattern, saliency="magnitude")
        try:
            own = crisp.compress(dense)
        except ValueError:  # no layer has a block of zeros
            own = dense
        check(dense(tokens).logits, own(tokens).logits)
        calls = {DENSE: partial(dense, tokens), CRISP: partial(own, tokens)}
        for call in calls.values():
            warm_up(call)
        timed = compared(interleaved(calls, Effort(30, 20), clock_of("cpu")), DENSE)
        found.append({"sparsity": share, "pattern": pattern, "timed": [asdict(each) for each in timed]})
        print(f"{share:.0%}, {pattern}: {timed[1].ratio.median:.2f} of dense")
    write_json(options.output, {"batch": BATCH, "tokens": TOKENS, "machine": machine("cpu"), "cases": found})


if __name__ == "__main__":
    main(tyro.cli(Options))
