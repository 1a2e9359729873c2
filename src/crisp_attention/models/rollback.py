"""All or nothing: undoing the changes to a model when one of them fails."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from crisp_attention.models.host import Host
from crisp_attention.models.settings import settings_of

Attributes = dict[str, Any]


def remember(things: Iterable[object]) -> Callable[[], None]:
    """A function that restores the attributes that the objects have now.

    That covers which objects they hold (submodules, parameters, hooks, attributes), not the values of tensors.
    """
    before = [pair for each in things for pair in _held(vars(each))]

    def put_back() -> None:
        for attributes, contents in before:
            if not _same(attributes, contents):  # those of diffusers' configurations cannot be written to
                attributes.clear()
                attributes.update(contents)

    return put_back


@contextmanager
def all_or_nothing(things: Iterable[object]) -> Iterator[None]:
    """If the block raises, restore the objects as `remember` found them."""
    put_back = remember(things)
    try:
        yield
    except BaseException:
        put_back()
        raise


def everything(host: Host, root: nn.Module) -> Iterator[object]:
    """All that making a model sparse may change: its modules, their settings, and what the host changes of them."""
    held: dict[int, object] = {}
    for module in root.modules():
        yield module
        if (settings := settings_of(module)) is not None:
            yield settings
        held |= {id(each): each for each in host.held(module)}
    yield from held.values()


def _held(attributes: Attributes) -> list[tuple[Attributes, Attributes]]:
    """An object's attributes and those that are dictionaries, such as a module's parameters and hooks, with copies."""
    own = [attributes, *(value for value in attributes.values() if isinstance(value, dict))]
    return [(each, dict(each)) for each in own]


def _same(attributes: Attributes, contents: Attributes) -> bool:
    pairs = zip(attributes.items(), contents.items(), strict=False)
    return len(attributes) == len(contents) and all(
        one == other and value is kept for (one, value), (other, kept) in pairs
    )
