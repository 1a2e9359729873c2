"""What a comparison shows: means over seeds, differences paired by seed, and sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from crisp_attention.diffusion.runs import Run
from crisp_attention.diffusion.variants import DENSE, SLA
from crisp_attention.studies.statistics.intervals import seeds_interval


@dataclass(frozen=True)
class Line:
    """A variant over its seeds; `sla` labels what `from_sla` compares it with, "" for SLA itself and for dense."""

    label: str
    runs: list[Run]
    loss: float
    from_dense: list[float]
    from_sla: list[float] | None
    sla: str
    accuracy: float
    frechet: float

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def start(self) -> float:
        """The loss before fine-tuning."""
        return mean(self.runs, lambda run: run.losses[0])


def mean(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    """The mean over runs."""
    return sum(map(value, runs)) / len(runs)


def lines(runs: Sequence[Run]) -> list[Line]:
    """One for each variant, in the order of the runs. Differences are of final losses, relative to the other."""
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    dense = {run.seed: run.final for run in runs if run.attention == DENSE}
    found = []
    for label, own in by_label.items():
        compared = own[0].attention not in (SLA, DENSE) or own[0].trained != "all"
        sla = _sla(runs, own[0]) if compared else {}
        found.append(
            Line(
                label,
                own,
                mean(own, lambda run: run.final),
                [run.final / dense[run.seed] - 1 for run in own if run.seed in dense],
                [run.final / sla[run.seed].final - 1 for run in own if run.seed in sla] or None,
                next((run.label for run in sla.values()), ""),
                mean(own, lambda run: run.accuracy),
                mean(own, lambda run: run.frechet),
            )
        )
    return found


def _sla(runs: Sequence[Run], other: Run) -> dict[int, Run]:
    """The runs by seed of SLA with the same sparsity and loss; of the sparsest where the other has none."""
    alike = [run for run in runs if (run.attention, run.trained, run.loss) == (SLA, "all", other.loss)]
    sparsity = other.sparsity or max((run.sparsity or 0.0 for run in alike), default=0.0)
    return {run.seed: run for run in alike if run.sparsity == sparsity}


def findings(runs: Sequence[Run], *, quick: bool = False) -> list[str]:
    """Sentences on what the runs show, and what they do not: nothing, if they were quick ones."""
    found, seeds = lines(runs), len({run.seed for run in runs})
    steps = max(runs[0].losses)
    dense = next((line for line in found if line.first.attention == DENSE), None)
    sentences = ["A quick run, which shows that everything works: its numbers say nothing"] if quick else []
    if dense is not None:
        sla = [line for line in found if line.first.attention == SLA]
        sentences.append(
            f"Dense attention has a denoising loss of {dense.loss:.4f} on held-out images after {steps:,} steps of "
            f"fine-tuning. Relative to it: "
            + "; ".join(f"{line.label} {_difference(line.from_dense)}" for line in sla)
            + ". The table has the others"
        )
    sentences += [
        f"{line.label}: the loss is {_judged(line.from_sla, line.sla)}"
        for line in found
        if line.from_sla is not None
    ]
    if seeds < 3:
        few = "One seed" if seeds == 1 else "Two seeds"
        sentences.append(
            f"{few}: how much models trained with other seeds differ is not known, so no difference here is shown to "
            f"be more than chance; use --seeds 3 or more"
        )
    return [f"{each}." for each in sentences]


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run, and a column for the loss at every step that was looked at."""
    return pd.DataFrame(
        {
            "variant": run.label,
            "attention": run.attention,
            "sparsity": run.sparsity,
            "loss": run.loss,
            "trained": run.trained,
            "method": run.method,
            "seed": run.seed,
            "accuracy": run.accuracy,
            "frechet": run.frechet,
            "operations": run.operations,
            "softmax_share": run.softmax_pairs,
            "linear_share": run.linear_share,
            "seconds": run.seconds,
        }
        | {f"loss_at_{step}": loss for step, loss in run.losses.items()}
        for run in runs
    )


def relative(differences: Sequence[float] | None) -> tuple[float | None, str]:
    """The mean of differences, and in percent with its interval over seeds, as tables show it."""
    if not differences:
        return None, ""
    middle = sum(differences) / len(differences)
    known = seeds_interval(differences)
    if known is None:
        return middle, f"{100 * middle:+.1f}"
    return middle, f"{100 * middle:+.1f} [{100 * known.low:+.1f} to {100 * known.high:+.1f}]"


def _difference(differences: Sequence[float], form: str = "+.1f") -> str:
    mean, known = 100 * sum(differences) / len(differences), seeds_interval(differences)
    if known is None:
        return f"{mean:{form}}\N{NO-BREAK SPACE}%"
    return f"{mean:{form}}\N{NO-BREAK SPACE}% [{100 * known.low:{form}} to {100 * known.high:{form}}]"


def _judged(differences: Sequence[float], sla: str) -> str:
    """A relative difference from an SLA in words: above, below, or not told apart."""
    known = seeds_interval(differences)
    if known is not None and known.low <= 0 <= known.high:
        return f"not told apart from that of {sla} ({_difference(differences)})"
    above = sum(differences) > 0
    sizes = differences if above else [-each for each in differences]
    return f"{_difference(sizes, '.1f')} {'above' if above else 'below'} that of {sla}"
