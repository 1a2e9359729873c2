"""The answer to the study's question, in sentences."""

from collections.abc import Sequence

from crisp_attention.studies.analysis import Analysis, Line, Verdict
from crisp_attention.studies.report.numbers import percent
from crisp_attention.studies.statistics import SEEDS_NEEDED

MOST_NAMES = 3  # more make no sentence; they are counted


def answer(analysis: Analysis) -> str:
    """Does sparse attention help here? In a sentence or two; random controls are not asked."""
    asked = [line for line in analysis.lines if line.to_dense and not line.configuration.is_random]
    if not asked:
        return (
            f"Nothing can be said yet: no sparse configuration shares {SEEDS_NEEDED} seeds with dense, "
            f"which a comparison needs."
        )
    found = {verdict: [line for line in asked if _verdict(line) is verdict] for verdict in Verdict}
    better, worse, open_ = found[Verdict.BETTER], found[Verdict.WORSE], found[Verdict.NOT_SHOWN]
    if better:
        return f"Yes, in {_count(better, asked)}: more accurate than dense with {_names(better)}.{_control(better)}"
    if not open_:
        return f"No: {_all(asked)} less accurate than dense."
    worse_too = f" Less accurate than dense: {_names(worse)}." if worse else ""
    detectable = max(line.to_dense.detectable for line in open_ if line.to_dense)
    limit = (
        f". A true difference of {percent(detectable, 1)} points would be detected in about 80 % of studies this size"
        if detectable
        else ""
    )
    return f"No gain is shown.{worse_too} {_names(open_)}: no difference from dense was detected{limit}."


def sentences(analysis: Analysis) -> list[tuple[Line, Verdict, str]]:
    """Every line that is compared with dense, its verdict, and the verdict in a sentence."""
    return [
        (line, line.to_dense.verdict, f"{line.to_dense.words}{_diverged(line)}")
        for line in analysis.lines
        if line.to_dense
    ]


def _diverged(line: Line) -> str:
    count = len(line.diverged)
    return f"; {count} of {count + len(line.runs)} runs diverged and are left out" if count else ""


def _control(better: Sequence[Line]) -> str:
    same = [line for line in better if line.to_random and line.to_random.verdict is not Verdict.BETTER]
    if not same:
        return ""
    return f" But nothing shows that {_names(same)} does better than keys drawn at random."


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
