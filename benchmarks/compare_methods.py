"""Every method on SST-2 with MiniLM, at about 50 and 80 % achieved sparsity: the table in docs/results.md.

    python benchmarks/compare_methods.py --dataset ../shared/data/sst2 --output runs/methods

All runs train under bfloat16 autocast, with one recipe. Methods whose sparsity follows from the data
are set on the pretrained model, by bisection on 96 training sentences, so that they drop as much
there. Finished runs are kept: run it again to continue.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd
import torch
import tyro
from torch.utils.data import DataLoader

import crisp_attention as crisp
from crisp_attention.methods.method import AnyMethod, as_method
from crisp_attention.runs.data import load_task
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.spec import Data
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import mean_interval, paired_difference

LEVELS = (0.5, 0.8)
MODEL = "builtin:minilm"
FIXED: dict[float, tuple[AnyMethod, ...]] = {
    0.5: (crisp.TopK(0.5), crisp.NofM(2, 4), crisp.RandomK(0.5)),
    0.8: (crisp.TopK(0.8), crisp.NofM(1, 5), crisp.RandomK(0.8)),
}
# a knob that runs from 0 (drops least) to 1 (drops most) for each method that has to be set
KNOBS: dict[str, Callable[[float], AnyMethod]] = {
    "topp": lambda x: crisp.TopP(round(1 - 0.999 * x, 3)),
    "threshold": lambda x: crisp.Threshold(round(x, 3)),
    "entmax": lambda x: crisp.Entmax(round(1.01 + 3 * x, 3)),
    "block_topk": lambda x: crisp.BlockTopK(round(0.99 * x, 3), block_size=2),
    "window": lambda x: crisp.Window(1 + 2 * round((1 - x) * 25)),
}
COLUMNS = [
    "achieved sparsity",
    "kept mass",
    "validation",
    "test",
    "difference on test",
    "seconds per step",
    "step relative to dense",
]
ROUNDS = 15


@dataclass(frozen=True)
class Options:
    """Train every method with every seed."""

    dataset: str
    """A folder of SST-2."""
    output: Path = Path("runs/methods")
    """Folder for the runs."""
    train_examples: int = 2000
    """Training sentences."""
    epochs: float = 2.0
    """Passes over them."""
    learning_rate: float = 5e-5
    """The same for every method."""
    seeds: int = 3
    """Runs per method."""
    workers: int = 2
    """Runs at a time, each on one thread."""


def main(options: Options) -> None:
    """Calibrate, train, print the table."""
    options.output.mkdir(parents=True, exist_ok=True)
    specs = calibrated(options)
    training = {"save_strategy": "no", "eval_strategy": "no", "bf16": True, "use_cpu": True}
    study = crisp.sweep(
        MODEL,
        crisp.Data(source=options.dataset, train_examples=options.train_examples),
        methods=[crisp.parse(spec) for spec in specs],
        output=options.output / "study",
        seeds=options.seeds,
        workers=options.workers,
        recipe=crisp.Recipe(epochs=options.epochs, learning_rate=options.learning_rate, training=training),
    )
    table(study.folder, steps(options, ["dense", *specs]))


def calibrated(options: Options) -> list[str]:
    """The specs of all methods but dense, those with a knob set to drop as much as the level says."""
    file = options.output / "methods.json"
    if file.exists():
        return json.loads(file.read_text())
    task = load_task(Data(source=options.dataset, train_examples=96))
    source = load_source(MODEL, task, None)
    loader = DataLoader(source.encode(task.splits["train"]), batch_size=32, collate_fn=source.collate)  # type: ignore
    batches = list(loader)

    def dropped(method: AnyMethod) -> float:
        crisp.sparsify(source.model, method)
        source.model.eval()
        with torch.no_grad(), crisp.measuring(source.model) as measured:
            for batch in batches:
                source.model(**batch)
        return measured.summary()["sparsity"]

    methods: list[AnyMethod] = [crisp.Entmax("learned")]
    for level in LEVELS:
        methods += FIXED[level]
        for name, knob in KNOBS.items():
            low, high, seen = 0.0, 1.0, {}
            for _ in range(8):
                middle = (low + high) / 2
                seen[knob(middle)] = drops = dropped(knob(middle))
                low, high = (middle, high) if drops < level else (low, middle)
            best = min(seen, key=lambda m, at=level, drops=seen: abs(drops[m] - at))
            print(f"{name} at {level:.0%}: {as_method(best).spec} drops {seen[best]:.1%}", flush=True)
            methods.append(best)
    specs = [as_method(method).spec for method in methods]
    file.write_text(json.dumps(specs, indent=1))
    return specs


def steps(options: Options, specs: list[str]) -> dict[str, float]:
    """Time of a training step relative to dense: medians of the methods' steps, taken in turns on one model."""
    file = options.output / "steps.json"
    if file.exists():
        return json.loads(file.read_text())
    task = load_task(Data(source=options.dataset, train_examples=32 * ROUNDS))
    source = load_source(MODEL, task, None)
    model = source.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    loader = DataLoader(source.encode(task.splits["train"]), batch_size=32, collate_fn=source.collate)  # type: ignore
    taken: dict[str, list[float]] = {spec: [] for spec in specs}
    for batch in loader:
        for spec in specs:
            if spec != "dense":
                crisp.sparsify(model, crisp.parse(spec))
            began = perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            taken[spec].append(perf_counter() - began)
            if spec != "dense":
                crisp.densify(model)
    ratios = {spec: median(times) / median(taken["dense"]) for spec, times in taken.items()}
    file.write_text(json.dumps(ratios, indent=1))
    return ratios


def table(study: StudyFolder, ratios: dict[str, float]) -> None:
    """Print one line per method, in Markdown: means over seeds, accuracies with 95 % t-intervals."""
    dense = accuracies(study, study.dense, "test")
    print("|".join(["", "method", *COLUMNS, ""]))
    print("|---" * (len(COLUMNS) + 1) + "|")
    for configuration in study.configurations:
        runs = pd.DataFrame([run.metrics for run in study.finished(configuration)])
        test = accuracies(study, configuration, "test")
        validation = mean_interval(accuracies(study, configuration, "validation"))
        gap, at = paired_difference(test, dense), mean_interval(test)
        cells = [
            f"`{configuration.spec}`",
            f"{runs['achieved_sparsity'].mean():.1%}",
            f"{runs['kept_mass'].mean():.1%}",
            f"{validation.mean:.1f} ± {validation.half_width:.1f}",
            f"{at.mean:.1f} ± {at.half_width:.1f}",
            "" if configuration.is_dense else f"{gap.mean:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})",
            f"{runs['seconds_per_step'].mean():.2f}",
            f"{ratios[configuration.spec]:.2f}",
        ]
        print("|".join(["", *cells, ""]))


def accuracies(study: StudyFolder, configuration: Configuration, split: str) -> list[float]:
    """In percent, by seed."""
    return [100 * run.metrics[split]["accuracy"] for run in study.finished(configuration)]


if __name__ == "__main__":
    main(tyro.cli(Options))
