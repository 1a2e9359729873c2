"""The results of a study, from the files in its folder, and what a reader must know in addition to its numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from crisp_attention.errors import listed
from crisp_attention.runs.task.metrics import ACCURACY
from crisp_attention.studies.analysis.compare import compare_all
from crisp_attention.studies.analysis.read import RunRead, StudyRead, read_study
from crisp_attention.studies.analysis.results import SEEDS_WANTED, Analysis, Comparison, Line
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import SEEDS_NEEDED, seeds_interval

FLIPS_SHOWN = 50


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
            f"or were finished on another machine: copy their folders here ({names})"
        )


def _diverged(read: StudyRead) -> Iterator[str]:
    for each in read.study.configurations:
        if found := read.diverged[each.id]:
            yield (
                f"diverged: {each.label}, seed {listed(found)}: the loss is not finite. "
                f"All means and differences are over the other runs, and so say nothing about how often it diverges"
            )


def _seeds(read: StudyRead) -> Iterator[str]:
    study = read.study
    counts = [len(read.runs[each.id]) for each in study.configurations]
    fewest = min((count for count in counts if count >= SEEDS_NEEDED), default=SEEDS_WANTED)
    if fewest < SEEDS_WANTED:
        yield f"intervals over {fewest} seeds are wide: use {SEEDS_WANTED} or more"
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
            "not every run has a labelled test split: all numbers are from validation, which must not have "
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
        yield f"the runs were made on different devices, so times and memory cannot be compared: {_counted(devices)}"


def _memory(runs: list[RunRead]) -> Iterator[str]:
    if whole := [run for run in runs if run.metrics.get("peak_memory_of") != "training"]:
        yield (
            f"peak memory of {len(whole)} of {len(runs)} runs is that of the whole process, with what it computed "
            f"before and after training, not of training alone"
        )


def _counted(values: Counter[str]) -> str:
    return ", ".join(f"{value} ({count} run{'s' * (count > 1)})" for value, count in sorted(values.items()))


def analyse(study: StudyFolder) -> Analysis:
    """Compare every configuration with dense and, where there is one, with its random control.

    An unfinished study is analysed as far as it goes. Raises OptionError, naming the file or the runs, for
    files that are damaged and for runs that did not predict the same examples.
    """
    read = read_study(study)
    others = [each for each in study.configurations if not each.is_dense]
    to_dense = compare_all(others, study.dense, read)
    to_random: dict[str, Comparison] = {}
    for control in (each for each in others if each.is_control):
        controlled = [each for each in others if study.control(each) == control]
        to_random |= compare_all(controlled, control, read)
    tables = {each.id: read.table(each) for each in study.configurations}
    failed, missing = study.failed(), tuple(study.missing())
    return Analysis(
        study=study,
        metric=read.metric,
        split=read.split,
        labels=read.labels,
        lines=tuple(
            _line(each, read, tables, to_dense.get(each.id), to_random.get(each.id))
            for each in study.configurations
        ),
        failed=failed,
        missing=missing,
        flips=_flips(read),
        notes=notes_on(read, failed, missing),
    )


def _line(
    configuration: Configuration,
    read: StudyRead,
    tables: Mapping[str, pd.DataFrame],
    to_dense: Comparison | None,
    to_random: Comparison | None,
) -> Line:
    """The means of a configuration's runs, next to those of dense; `tables` by configuration id."""
    runs, dense_runs = tables[configuration.id], tables[read.study.dense.id]
    relative = runs.mean().astype(float) / dense_runs.mean().astype(float)  # objects where there are no runs
    found = read.runs[configuration.id].values()
    return Line(
        configuration=configuration,
        runs=runs,
        kernels=tuple(sorted({name for run in found for name in run.metrics.get("kernels", ())})),
        diverged=read.diverged[configuration.id],
        score=seeds_interval(runs["score"].tolist()),
        sd=float(runs["score"].std()),
        relative_time=float(relative["seconds_per_step"]),
        relative_memory=float(relative["peak_memory_bytes"]),
        to_dense=to_dense,
        to_random=to_random,
        histories=tuple(run.history for run in found),
        measurements=tuple(run.measurements for run in found if run.measurements is not None),
    )


def _flips(read: StudyRead) -> pd.DataFrame:
    """`Analysis.flips`; examples that nothing flips are left out."""
    table = pd.DataFrame({"index": read.labels.index, "label": read.labels.to_numpy()})
    counted = ["flips", "pairs", "gained", "lost"]
    table[counted] = 0
    dense = read.study.dense
    for configuration in read.study.configurations if read.predicts_classes else ():
        if configuration.is_dense or configuration.is_control:
            continue
        seeds = read.shared_seeds(configuration, dense)
        flipped = read.predictions(configuration, seeds) != read.predictions(dense, seeds)
        right, dense_right = read.correct(configuration, seeds), read.correct(dense, seeds)
        gained, lost = (right & ~dense_right).sum(axis=0), (~right & dense_right).sum(axis=0)
        table[counted] += np.stack(
            [flipped.sum(axis=0), np.full(len(table), len(seeds)), gained, lost], axis=1
        )
        table[configuration.id] = flipped.mean(axis=0) if seeds else np.nan
    table = table[table["flips"] > 0].sort_values("flips", ascending=False, kind="stable")
    return table.head(FLIPS_SHOWN).reset_index(drop=True)
