"""The methods that a page shows."""

from crisp_attention.errors import OptionError
from crisp_attention.methods.layouts import BlockTopK, Window
from crisp_attention.methods.method import AnyMethod, Method, as_method
from crisp_attention.methods.rules import Entmax, NofM, RandomK, Threshold, TopK, TopP
from crisp_attention.methods.spec import parse

DEFAULTS: tuple[AnyMethod, ...] = (
    TopK(0.5),
    TopK(0.8),
    TopP(0.9),
    Threshold(0.1),
    NofM(1, 4),
    Entmax(1.5),
    BlockTopK(0.5, block_size=4),
    Window(5),
    RandomK(0.8),
)


def chosen(specs: tuple[str, ...]) -> list[Method]:
    """The methods that the specs name, by default `DEFAULTS`. Raises OptionError for a spec that is none."""
    if not specs:
        return [as_method(each) for each in DEFAULTS]
    methods = []
    for spec in specs:
        try:
            methods.append(parse(spec))
        except (TypeError, ValueError) as error:
            raise OptionError(f"method {spec}: {error}", "method") from error
    return list(dict.fromkeys(methods))
