"""Before anything is timed: do all contenders compute the same?"""

from dataclasses import replace

import torch
from torch import Tensor

from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import Contender, UnavailableError
from crisp_attention.bench.ours import crisp
from crisp_attention.bench.roster import roster
from crisp_attention.errors import first_line
from crisp_attention.methods.method import Method

LENGTH = 512
TOLERANCE = 1e-3  # of the largest entry: float32, sums in another order


def disagreeing(method: Method, shape: Shape, backward: bool, skip: dict[str, str]) -> dict[str, str]:
    """Contenders that do not give what our reference gives on a small float32 case, with the reason, by name.

    Compared are outputs or, with `backward`, gradients. A contender that cannot compute them counts too.
    """
    small = replace(shape, batch=1, heads=2, length=LENGTH, dtype="float32")
    expected = _computed(crisp(method, "reference"), small, backward)
    found, absent = roster(method, small, skip)
    reasons = {each.name: each.reason for each in absent}
    for contender in found:
        try:
            computed = _computed(contender, small, backward)
        except UnavailableError as reason:
            reasons[contender.name] = str(reason)
            continue
        except Exception as error:  # other people's code: whatever it raises, the run goes on without it
            reasons[contender.name] = f"fails: {first_line(error)}"
            continue
        if (worst := _difference(computed, expected)) > TOLERANCE:
            what = "gradients" if backward else "output"
            reasons[contender.name] = (
                f"wrong: its {what} differ from the reference's by {worst:.1e} of the largest entry, "
                f"allowed are {TOLERANCE:.0e}"
            )
    return reasons


def _computed(contender: Contender, shape: Shape, backward: bool) -> tuple[Tensor, ...]:
    torch.manual_seed(0)  # for what is drawn at random
    return contender.call(shape, backward)()


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    ratios = [
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    ]
    return max(ratios) if all(ratio == ratio for ratio in ratios) else float("inf")
