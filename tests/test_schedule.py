import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import Schedule
from crisp_attention.schedule import SHAPES

SPARSITY, FRACTION = st.floats(0, 0.999), st.floats(0, 1)
MOVING = [shape for shape in SHAPES if shape != "constant"]
TINY = 1e-12


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    begin, end = sorted(draw(st.lists(FRACTION, min_size=2, max_size=2, unique=True)))
    return Schedule(draw(SPARSITY), draw(SPARSITY), draw(st.sampled_from(list(SHAPES))), begin, end)


@given(schedules(), FRACTION, FRACTION)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_moves_one_way_between_its_two_ends(schedule: Schedule, a: float, b: float) -> None:
    early, late = schedule(min(a, b)), schedule(max(a, b))
    low, high = sorted([schedule.initial, schedule.final])
    assert low - TINY <= early <= high + TINY
    assert (late - early) * (schedule.final - schedule.initial) >= -TINY


@given(SPARSITY, SPARSITY, st.sampled_from(MOVING))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_is_exactly_initial_until_begin_and_exactly_final_from_end(
    final: float, initial: float, shape: str
) -> None:
    schedule = Schedule(final, initial, shape, begin=0.2, end=0.6)
    assert [schedule(0), schedule(0.1), schedule(0.2)] == [initial] * 3
    assert [schedule(0.6), schedule(0.8), schedule(1)] == [final] * 3


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [("linear", 0.2, 0.4), ("cosine", 0.8 * (2 - 2**0.5) / 4, 0.4), ("cubic", 0.8 * 37 / 64, 0.8 * 7 / 8)],
)
def test_shapes_by_hand(shape: str, quarter: float, half: float) -> None:
    schedule = Schedule(0.8, shape=shape, end=1.0)
    assert schedule(0.25) == pytest.approx(quarter)
    assert schedule(0.5) == pytest.approx(half)


def test_constant_is_final_from_the_first_step() -> None:
    schedule = Schedule(0.7, initial=0.1, shape="constant", begin=0.5, end=0.6)
    assert {schedule(p / 10) for p in range(11)} == {0.7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "step"}, r"shape must be one of constant, linear, cosine, cubic, got 'step'"),
        ({"final": 1.0}, r"final must be in \[0, 1\), got 1\.0"),
        ({"initial": -0.5}, r"initial must be in \[0, 1\), got -0\.5"),
        ({"initial": float("nan")}, r"initial must be in \[0, 1\), got nan"),
        ({"begin": 0.5, "end": 0.5}, r"0 <= begin < end <= 1, got 0\.5 and 0\.5"),
        ({"begin": -0.1}, r"0 <= begin < end <= 1, got -0\.1 and 0\.5"),
        ({"end": 1.5}, r"0 <= begin < end <= 1, got 0\.0 and 1\.5"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"final": 0.8, **options})


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_training_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match=rf"progress must be in \[0, 1\], got {progress}"):
        Schedule(0.8)(progress)
