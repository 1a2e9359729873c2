"""A change of a model happens as a whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from crisp_attention.models.configs import config_of
from crisp_attention.models.settings import ATTRIBUTE

Attributes = dict[str, Any]


def remember(root: nn.Module) -> Callable[[], None]:
    """What puts the modules of `root`, their configurations and settings back as they are now.

    That covers which objects they hold (submodules, parameters, hooks, attributes), not the values of tensors.
    """
    before = [pair for each in _everything(root) for pair in _held(vars(each))]

    def put_back() -> None:
        for attributes, contents in before:
            attributes.clear()
            attributes.update(contents)

    return put_back


@contextmanager
def all_or_nothing(root: nn.Module) -> Iterator[None]:
    """If the block raises, `root` is what it was before, as `remember` understands it."""
    put_back = remember(root)
    try:
        yield
    except BaseException:
        put_back()
        raise


def _everything(root: nn.Module) -> Iterator[Any]:
    configs: dict[int, Any] = {}
    for module in root.modules():
        yield module
        if settings := getattr(module, ATTRIBUTE, None):
            yield settings
        if (config := config_of(module)) is not None:
            configs[id(config)] = config
    yield from configs.values()


def _held(attributes: Attributes) -> list[tuple[Attributes, Attributes]]:
    """An object's attributes and those that are dictionaries, such as a module's parameters and hooks, with copies."""
    own = [attributes, *(value for value in attributes.values() if isinstance(value, dict))]
    return [(each, dict(each)) for each in own]
