"""What a reader of a study must know besides its numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crisp_attention.errors import listed
from crisp_attention.runs.task.metrics import ACCURACY
from crisp_attention.studies.analysis.read import RunRead, StudyRead
from crisp_attention.studies.analysis.results import SEEDS_WANTED
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import SEEDS_NEEDED, seeds_interval


def notes_on(
    read: StudyRead,
    failed: Mapping[tuple[str, int], str],
    missing: Sequence[tuple[Configuration, int]],
) -> tuple[str, ...]:
    """Sentences on runs, seeds, the split, versions and devices."""
    runs = [each for of_seed in read.runs.values() for each in of_seed.values()]
    return (
        *_absent(read.study, failed, missing),
        *map(str, read.study.additions),
        *_diverged(read),
        *_seeds(read),
        *_learned(read),
        *_split(read, runs),
        *_versions(runs),
        *_devices(runs),
        *_memory(runs),
    )


def _absent(
    study: StudyFolder,
    failed: Mapping[tuple[str, int], str],
    missing: Sequence[tuple[Configuration, int]],
) -> Iterator[str]:
    labels = {each.id: each.label for each in study.configurations}
    for (name, seed), reason in failed.items():
        yield f"failed: {labels[name]}, seed {seed}: {reason}"
    if missing:
        names = listed(f"{each.label} seed {seed}" for each, seed in missing)
        yield (
            f"{len(missing)} of {len(study.plan.runs())} runs are still to do, "
            f"or finished on another machine: copy its folder here ({names})"
        )


def _diverged(read: StudyRead) -> Iterator[str]:
    for each in read.study.configurations:
        if found := read.diverged[each.id]:
            yield (
                f"diverged: {each.label}, seed {listed(found)}: the loss is no finite number. "
                f"All means and differences are over the other runs, and so say nothing of how often it diverges"
            )


def _seeds(read: StudyRead) -> Iterator[str]:
    study = read.study
    counts = [len(read.runs[each.id]) for each in study.configurations]
    fewest = min((count for count in counts if count >= SEEDS_NEEDED), default=SEEDS_WANTED)
    if fewest < SEEDS_WANTED:
        yield f"intervals over {fewest} seeds are wide: {SEEDS_WANTED} or more are better"
    for each in study.configurations:
        for baseline in () if each.is_dense else (study.dense, study.control(each)):
            if baseline and len(read.shared_seeds(each, baseline)) < SEEDS_NEEDED:
                both = len(read.shared_seeds(each, baseline))
                yield (
                    f"{each.label} is not compared with {baseline.label}: a comparison needs "
                    f"{SEEDS_NEEDED} seeds that both have, and there {'is' if both == 1 else 'are'} {both}"
                )


def _learned(read: StudyRead) -> Iterator[str]:
    runs = read.runs[read.study.dense.id].values()
    if runs and all(len(set(run.predictions.tolist())) == 1 for run in runs):
        what = "one class" if read.predicts_classes else "one number"
        yield f"no dense run has learned anything: each predicts {what} for all examples"
        return
    if read.metric is not ACCURACY:
        return
    labels = read.labels.to_numpy()
    interval = seeds_interval([float(np.mean(run.predictions == labels)) for run in runs])
    largest = max(np.unique_counts(labels).counts, default=0) / max(len(labels), 1)
    if interval is not None and interval.low <= largest:
        yield (
            f"dense ({interval.mean:.1%}) is not shown to be more accurate than always answering the most frequent "
            f"class ({largest:.1%}): where the baseline has learned so little, comparisons with it test nothing"
        )


def _split(read: StudyRead, runs: list[RunRead]) -> Iterator[str]:
    if read.split == "validation" and runs:
        yield (
            "not every run has a labelled test split: all numbers are of validation, which must not have "
            "been used for choosing anything, such as learning rate, epochs or sparsity"
        )


def _versions(runs: list[RunRead]) -> Iterator[str]:
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for package, version in run.versions.items():
            found.setdefault(package, Counter())[version] += 1
    for package, versions in found.items():
        if len(versions) > 1:
            yield f"the runs were made with different versions of {package}: {_counted(versions)}"


def _devices(runs: list[RunRead]) -> Iterator[str]:
    devices = Counter(run.metrics["device"].partition(":")[0] for run in runs)
    if len(devices) > 1:
        yield f"the runs were made on different devices, so times and memory do not compare: {_counted(devices)}"


def _memory(runs: list[RunRead]) -> Iterator[str]:
    if whole := [run for run in runs if run.metrics.get("peak_memory_of") != "training"]:
        yield (
            f"peak memory of {len(whole)} of {len(runs)} runs is that of the whole process, with what it computed "
            f"before and after training: it does not say what training takes"
        )


def _counted(values: Counter[str]) -> str:
    return ", ".join(f"{value} ({count} run{'s' * (count > 1)})" for value, count in sorted(values.items()))
