"""What a reader of a study must know besides its numbers."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from crisp_attention.errors import listed
from crisp_attention.studies.analysis.answers import Answers, metrics_of
from crisp_attention.studies.statistics import SEEDS_NEEDED, seeds_interval
from crisp_attention.studies.study import FinishedRun, Study, readable

SEEDS_WANTED = 5


def notes_on(study: Study, answers: Answers) -> tuple[str, ...]:
    """Sentences on runs, seeds, the split, versions and devices. Raises OptionError for damaged files."""
    runs = [each.run for of_seed in answers.runs.values() for each in of_seed.values()]
    return (
        *_absent(study),
        *_diverged(study),
        *_seeds(study, answers),
        *_learned(study, answers),
        *_split(answers, runs),
        *_versions(runs),
        *_devices(runs),
        *_memory(runs),
    )


def _absent(study: Study) -> Iterator[str]:
    labels = {each.id: each.label for each in study.configurations}
    failed, missing = study.failed(), study.missing()
    for (name, seed), reason in failed.items():
        yield f"failed: {labels[name]}, seed {seed}: {reason}"
    if missing:
        names = listed(f"{each.label} seed {seed}" for each, seed in missing)
        yield (
            f"{len(missing)} of {len(study.configurations) * len(study.seeds)} runs are still to do, "
            f"or finished on another machine: copy its folder here ({names})"
        )


def _diverged(study: Study) -> Iterator[str]:
    for each in study.configurations:
        if found := study.diverged(each):
            yield (
                f"diverged: {each.label}, seed {listed(run.seed for run in found)}: the loss is no finite number. "
                f"All means and differences are over the other runs, and so say nothing of how often it diverges"
            )


def _seeds(study: Study, answers: Answers) -> Iterator[str]:
    counts = [len(answers.runs[each.id]) for each in study.configurations]
    fewest = min((count for count in counts if count >= SEEDS_NEEDED), default=SEEDS_WANTED)
    if fewest < SEEDS_WANTED:
        yield f"intervals over {fewest} seeds are wide: {SEEDS_WANTED} or more are better"
    for each in study.configurations:
        for baseline in () if each.is_dense else (study.dense, study.control(each)):
            if baseline and len(answers.shared_seeds(each, baseline)) < SEEDS_NEEDED:
                both = len(answers.shared_seeds(each, baseline))
                yield (
                    f"{each.label} is not compared with {baseline.label}: a comparison needs "
                    f"{SEEDS_NEEDED} seeds that both have, and there {'is' if both == 1 else 'are'} {both}"
                )


def _learned(study: Study, answers: Answers) -> Iterator[str]:
    runs = answers.runs[study.dense.id].values()
    if runs and all(len(set(run.predictions.tolist())) == 1 for run in runs):
        yield "no dense run has learned anything: each predicts one class for all examples"
        return
    interval = seeds_interval([float(np.mean(run.predictions == answers.labels)) for run in runs])
    largest = max(np.unique_counts(answers.labels).counts, default=0) / max(len(answers.labels), 1)
    if interval is not None and interval.low <= largest:
        yield (
            f"dense ({interval.mean:.1%}) is not shown to be more accurate than always answering the most frequent "
            f"class ({largest:.1%}): where the baseline has learned so little, comparisons with it test nothing"
        )


def _split(answers: Answers, runs: list[FinishedRun]) -> Iterator[str]:
    if answers.split == "validation" and runs:
        yield (
            "not every run has a labelled test split: all numbers are of validation, which must not have "
            "been used for choosing anything, such as learning rate, epochs or sparsity"
        )


def _versions(runs: list[FinishedRun]) -> Iterator[str]:
    found: dict[str, Counter[str]] = {}
    for run in runs:
        with readable(run.directory.config):
            for package, version in run.config["versions"].items():
                found.setdefault(package, Counter())[version] += 1
    for package, versions in found.items():
        if len(versions) > 1:
            yield f"the runs were made with different versions of {package}: {_counted(versions)}"


def _devices(runs: list[FinishedRun]) -> Iterator[str]:
    devices: Counter[str] = Counter()
    for run in runs:
        metrics = metrics_of(run)
        with readable(run.directory.metrics):
            devices[metrics["device"].partition(":")[0]] += 1
    if len(devices) > 1:
        yield f"the runs were made on different devices, so times and memory do not compare: {_counted(devices)}"


def _memory(runs: list[FinishedRun]) -> Iterator[str]:
    if whole := [run for run in runs if metrics_of(run).get("peak_memory_of") != "training"]:
        yield (
            f"peak memory of {len(whole)} of {len(runs)} runs is that of the whole process, with what it computed "
            f"before and after training: it does not say what training takes"
        )


def _counted(values: Counter[str]) -> str:
    return ", ".join(f"{value} ({count} run{'s' * (count > 1)})" for value, count in sorted(values.items()))
