"""The verdicts of a study, in sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crisp_attention.runs.task.metrics import ACCURACY
from crisp_attention.studies.analysis.results import Analysis, Comparison, Line, Verdict
from crisp_attention.studies.numbers import Unit, probability
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import SEEDS_NEEDED

MOST_NAMES = 3  # more than this are counted, not named


@dataclass(frozen=True)
class Statement:
    """The verdict on a configuration against a baseline.

    verdict: None where there is none.
    comparison: the numbers behind it, where there are any.
    words: the sentence.
    """

    configuration: Configuration
    baseline: Configuration
    verdict: Verdict | None
    comparison: Comparison | None
    words: str

    def __str__(self) -> str:
        return f"{self.configuration.label} and {self.baseline.label}: {self.words}"


def statements(analysis: Analysis) -> tuple[Statement, ...]:
    """One verdict for every configuration against dense, and with its random control where there is one."""
    return tuple(_statements(analysis))


def _statements(analysis: Analysis) -> Iterator[Statement]:
    study = analysis.study
    for line in analysis.lines:
        each = line.configuration
        pairs = ((study.dense, line.to_dense), (study.control(each), line.to_random))
        for baseline, found in () if each.is_dense else pairs:
            if baseline is None:
                continue
            if analysis.missing or found is None:
                reason = unfinished(analysis) or _too_few(analysis, line, baseline)
                yield Statement(each, baseline, None, found, reason)
            else:
                words = f"{sentence(found, Unit(analysis.metric))}{_diverged(line)}"
                yield Statement(each, baseline, found.verdict, found, words)


def answer(analysis: Analysis) -> str:
    """Whether sparse attention helps, in a sentence or two; random controls do not count."""
    if analysis.missing:
        return f"{unfinished(analysis)}."
    asked = [line for line in analysis.lines if line.to_dense and not line.configuration.is_control]
    if not asked:
        return (
            f"Nothing can be said yet: no sparse configuration shares {SEEDS_NEEDED} seeds with dense, "
            f"which a comparison needs."
        )
    found = {verdict: [line for line in asked if _verdict(line) is verdict] for verdict in Verdict}
    better, worse, open_ = found[Verdict.BETTER], found[Verdict.WORSE], found[Verdict.NOT_SHOWN]
    more, less = _comparatives(analysis)
    if better:
        return f"Yes, in {_count(better, asked)}: {more} than dense with {_names(better)}.{_control(analysis, better)}"
    if not open_:
        return f"No: {_all(asked)} {less} than dense."
    worse_too = f" {less[0].upper()}{less[1:]} than dense: {_names(worse)}." if worse else ""
    detectable = max(line.to_dense.detectable for line in open_ if line.to_dense)
    unit = Unit(analysis.metric)
    limit = (
        f". A true difference of {unit.score(detectable, 1)} {unit.differences} would be detected in about 80 % of "
        f"studies this size"
        if detectable
        else ""
    )
    return f"No gain is shown.{worse_too} {_names(open_)}: no difference from dense was detected{limit}."


def correction(analysis: Analysis) -> str:
    """The correction behind the verdicts on differences from dense, in plain words; empty where there are none."""
    count = sum(line.to_dense is not None for line in analysis.lines)
    if not count:
        return ""
    if count == 1:
        return "One comparison with dense: if nothing differed, the chance of a false verdict would be at most 5 %."
    return (
        f"Corrected for {count} comparisons with dense (Holm): if nothing differed, the chance of even one false "
        f"verdict among them would be at most 5 %."
    )


def unfinished(analysis: Analysis) -> str:
    """The note that an unfinished study has no verdict; empty for a finished one."""
    if not analysis.missing:
        return ""
    done = analysis.planned - len(analysis.missing) - len(analysis.failed)
    return f"{done} of {analysis.planned} runs are finished: no verdict yet"


def sentence(found: Comparison, unit: Unit) -> str:
    """The verdict of a comparison, with the wider of the two intervals, named."""
    if found.detectable == 0 and found.verdict is Verdict.NOT_SHOWN:
        same = "right and wrong on the same examples as" if unit.metric is ACCURACY else "the same as"
        return f"{found.verdict.value}: {same} {found.baseline.label}"
    name, wider = found.wider
    words = (
        f"{found.verdict.value}: {unit.difference(found.difference.mean)} {unit.differences} "
        f"({name}: {unit.span(wider)})"
    )
    if found.verdict is not Verdict.NOT_SHOWN:
        return words
    if not wider.low <= 0 <= wider.high and found.comparisons > 1:
        words += f"; p = {probability(found.p)} once corrected for {found.comparisons} comparisons (Holm)"
    return f"{words}; smallest detectable difference ±{unit.score(found.detectable)}"


def _too_few(analysis: Analysis, line: Line, baseline: Configuration) -> str:
    others = next(each for each in analysis.lines if each.configuration == baseline)
    both = len(set(line.runs["seed"]) & set(others.runs["seed"]))
    return (
        f"nothing can be said: a comparison needs {SEEDS_NEEDED} seeds that both have, and there "
        f"{'is' if both == 1 else 'are'} {both}"
    )


def _diverged(line: Line) -> str:
    count = len(line.diverged)
    return f"; {count} of {count + len(line.runs)} runs diverged and are left out" if count else ""


def _comparatives(analysis: Analysis) -> tuple[str, str]:
    """Better and worse, in the metric's words."""
    metric = analysis.metric
    if metric is ACCURACY:
        return "more accurate", "less accurate"
    higher, lower = f"a higher {metric.title}", f"a lower {metric.title}"
    return (higher, lower) if metric.higher_is_better else (lower, higher)


def _control(analysis: Analysis, better: Sequence[Line]) -> str:
    same = [line for line in better if line.to_random and line.to_random.verdict is not Verdict.BETTER]
    if not same:
        return ""
    return f" But nothing shows that {_names(same)} does better than {analysis.control_words}."


def _verdict(line: Line) -> Verdict | None:
    return line.to_dense.verdict if line.to_dense else None


def _names(lines: Sequence[Line]) -> str:
    names = [line.configuration.label for line in lines]
    if len(names) > MOST_NAMES:
        return f"{len(names)} configurations"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(some: Sequence[Line], of: Sequence[Line]) -> str:
    if len(of) == 1:
        return "the one sparse configuration"
    return f"{len(some)} of {len(of)} sparse configurations"


def _all(lines: Sequence[Line]) -> str:
    name = lines[0].configuration.label
    return f"{name} is" if len(lines) == 1 else f"all {len(lines)} sparse configurations are"
