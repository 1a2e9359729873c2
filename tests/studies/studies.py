"""Fake studies: folders as `crisp sweep` and its runs leave them, with a known truth and nothing trained."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import log_softmax, ndtri

from crisp_attention.files import PACKAGES, write_json
from crisp_attention.methods.spec import parse
from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.runs.run_directory import RunDirectory
from crisp_attention.runs.spec import Data, Recipe
from crisp_attention.runs.treatment import Treatment
from crisp_attention.studies.attention import as_treatment
from crisp_attention.studies.folder import StudyFolder, failure_file
from crisp_attention.studies.plan import Configuration, Plan

VERSIONS = dict.fromkeys(PACKAGES, "1.2.3")
LAYERS, HEADS, STEPS, EPOCHS = 3, 2, 40, 4


@dataclass(frozen=True)
class World:
    """How the runs of a fake study come about.

    Run and example give a margin: what is hard about the example (a share `shared` of the variance, the same
    for every run), chance, and the level of the run: the configuration's true accuracy plus the seed's own
    deviation with standard deviation `seed_sd`. A positive margin is a right answer.
    """

    examples: int = 400
    classes: int = 2
    seed_sd: float = 0.005
    shared: float = 0.8
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def labels(self) -> np.ndarray:
        return self.random.integers(self.classes, size=self.examples)

    def logits(self, labels: np.ndarray, hardness: np.ndarray, accuracy: float) -> np.ndarray:
        """(examples, classes), right as often as `accuracy` says where hardness is standard normal."""
        chance = self.random.normal(size=len(labels))
        margin = np.sqrt(1 - self.shared) * chance - np.sqrt(self.shared) * hardness
        margin += ndtri(np.clip(accuracy, 0.001, 0.999))
        rows, wrong = np.arange(len(labels)), (labels + 1) % self.classes
        logits = np.full((len(labels), self.classes), -6.0)
        logits[rows, labels], logits[rows, wrong] = 1.5 * margin, -1.5 * margin
        return logits.astype(np.float32)


def make_study(
    path: Path,
    accuracies: Mapping[str, float],
    seeds: int = 5,
    world: World | None = None,
    splits: Sequence[str] = ("validation", "test"),
    failed: Mapping[tuple[str, int], str] | None = None,
    missing: Collection[tuple[str, int]] = (),
    texts: Sequence[str] = (),
    device: str = "cpu",
    diverged: Collection[tuple[str, int]] = (),
    metric: str | None = None,
) -> StudyFolder:
    """A study in `path` whose methods or ways of pruning, by spec, have these true accuracies. Example:

    make_study(tmp_path, {"dense": 0.85, "topk:sparsity=0.8": 0.87, "random:sparsity=0.8": 0.70})

    failed, missing, diverged: runs, by spec and seed, that failed with a reason, are not there, or have logits of
    NaN. With `texts`, one per
    example, the data set is in the folder `data`, as text and label; else only its name is recorded.
    """
    world = world or World(examples=len(texts) or 400)
    recipe = Recipe(learning_rate=5e-5, epochs=EPOCHS, batch_size=32, max_length=128)
    configurations = tuple(Configuration(_treatment(spec), recipe) for spec in accuracies)
    data = str(path / "data") if texts else "stanfordnlp/sst2"
    path.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        model="bert-base-uncased",
        data=Data(source=data),
        configurations=configurations,
        seeds=tuple(range(seeds)),
        metric=metric,
    )
    study = StudyFolder.begin(path, "fake", plan, ("crisp", "sweep", "--output", str(path)), None)
    study = replace(study, created="2025-01-31T12:00:00+00:00", versions=VERSIONS)
    study.write()
    labels = {split: world.labels() for split in ("train", *splits)}
    hardness = {split: world.random.normal(size=world.examples) for split in labels}
    if texts:
        (path / "data").mkdir()
        for split, of_split in labels.items():
            table = pd.DataFrame({"text": list(texts), "label": of_split})
            table.to_json(path / "data" / f"{split}.jsonl", orient="records", lines=True)
    for configuration, seed in plan.runs():
        key, directory = (configuration.spec, seed), study.directory(configuration, seed)
        deviation = world.seed_sd * world.random.normal()
        if key in (failed or {}):
            file = failure_file(directory.path)
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps({"reason": (failed or {})[key]}), encoding="utf-8")
        elif key not in missing:
            accuracy = accuracies[configuration.spec] + deviation
            logits = {
                split: world.logits(labels[split], hardness[split], accuracy + (split == "train") * 0.05)
                for split in labels
            }
            if key in diverged:
                logits = {split: np.full_like(each, np.nan) for split, each in logits.items()}
            _write_run(study, configuration, seed, directory, labels, logits, device)
    return study


def _treatment(spec: str) -> Treatment:
    return Pruning.parse(spec) if spec.startswith("prune") else as_treatment(parse(spec))


def _write_run(
    study: StudyFolder,
    configuration: Configuration,
    seed: int,
    directory: RunDirectory,
    labels: Mapping[str, np.ndarray],
    logits: Mapping[str, np.ndarray],
    device: str,
) -> None:
    """The files of a finished run, with the keys and columns that `finetune` writes."""
    directory.path.mkdir(parents=True)
    splits = {split: _scores(labels[split], logits[split]) for split in labels}
    for split in set(labels) - {"train"}:
        table = pd.DataFrame({"index": np.arange(len(labels[split])), "label": labels[split]})
        table = table.assign(prediction=logits[split].argmax(axis=1), logits=list(logits[split]))
        table.to_parquet(directory.predictions(split), compression="zstd", index=False)
    prunes = isinstance(configuration.treatment, Pruning)
    measured = _zeros(configuration, seed) if prunes else _measurements(configuration)
    measured.to_csv(directory.measurements, index=False)
    _history(splits["train"]["loss"], splits["validation"]).to_csv(directory.history, index=False)
    names = [str(label) for label in range(logits["train"].shape[1])]
    task = {"text_columns": ["text"], "image_column": None, "label_names": names}
    config = {
        "options": study.plan.run(configuration, seed).to_dict(),
        "command": study.command,
        "task": task | {"examples": {split: len(each) for split, each in labels.items()}},
        "notes": ["text column: text; label column: label"],
        "versions": VERSIONS,
    }
    write_json(directory.config, config)
    seconds = (0.10 if configuration.is_dense else 0.12) + 0.001 * seed
    metrics = splits | {
        "achieved_sparsity": float(measured["sparsity"].mean()),
        "kept_mass": None if prunes else float(measured["kept_mass"].mean()),
        "entropy": None if prunes else float(measured["entropy"].mean()),
        "steps": STEPS,
        "seconds_per_step": seconds,
        "train_seconds": STEPS * seconds,
        "peak_memory_bytes": 10**9 if configuration.is_dense else 15 * 10**8,
        "peak_memory_of": "training",
        "device": device,
        "kernels": ["sdpa"] if configuration.is_dense else ["cpu"],
    }
    write_json(directory.metrics, metrics)


def _scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
    right = logits.argmax(axis=1) == labels
    return {"accuracy": float(right.mean()), "loss": float(loss), "examples": len(labels)}


def _measurements(configuration: Configuration) -> pd.DataFrame:
    """Columns of `Measurement.table()`; later layers and heads keep a little less of the mass."""
    table = pd.DataFrame([(layer, head) for layer in range(LAYERS) for head in range(HEADS)])
    table.columns = ["layer", "head"]
    sparsity = 0.5 if configuration.treatment.sparsity is None else configuration.treatment.sparsity
    lost = sparsity * (0.2 + 0.05 * table["layer"] + 0.02 * table["head"])
    names = table["layer"].map("bert.encoder.layer.{}.attention.self".format)
    measured = table.assign(
        name=names,
        method=configuration.treatment.name,
        sparsity=sparsity,
        kept_mass=1 - (3 * lost if configuration.is_control else lost),
        entropy=1.5 - lost,
        keys_per_row=20 * (1 - sparsity),
        valid_pairs=2000,
        rows=100,
    )
    ordered = ["layer", "name", "method", "head", "sparsity", "kept_mass", "entropy", "keys_per_row"]
    return measured[[*ordered, "valid_pairs", "rows"]]


def _zeros(configuration: Configuration, seed: int) -> pd.DataFrame:
    """Columns of `Pruning.measure()`; earlier layers and seeds have more zeros."""
    names = [
        f"vit.layers.{layer}.{part}" for layer in range(LAYERS) for part in ("attention.q_proj", "mlp.fc1")
    ]
    shares = (configuration.treatment.sparsity or 0) + 0.25 - 0.1 * np.arange(len(names)) - 0.01 * seed
    return pd.DataFrame(
        {"name": names, "kind": "attention", "weights": 64, "sparsity": shares.clip(0, 1)}
    ).assign(layer=range(len(names)))


def _history(train_loss: float, validation: Mapping[str, float]) -> pd.DataFrame:
    """The Trainer's log: a loss and an evaluation per epoch, and its closing line."""
    log: list[dict[str, float]] = []
    for epoch in range(1, EPOCHS + 1):
        at = {"epoch": float(epoch), "step": STEPS // EPOCHS * epoch}
        behind = 0.3 * (1 - epoch / EPOCHS)
        rate = 5e-5 * (1 - epoch / EPOCHS)
        log.append({"loss": train_loss + behind, "grad_norm": 1.0, "learning_rate": rate, **at})
        scores = {"eval_loss": validation["loss"] + behind, "eval_accuracy": validation["accuracy"] - behind}
        log.append({**scores, "eval_runtime": 1.0, **at})
    log.append({"train_runtime": 5.0, "train_loss": train_loss, "epoch": float(EPOCHS), "step": STEPS})
    return pd.DataFrame(log)
