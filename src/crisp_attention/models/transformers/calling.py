"""What the code of an attention module says about the functions that may compute its attention."""

import inspect
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

INTERFACE = "ALL_ATTENTION_FUNCTIONS"


@dataclass(frozen=True)
class Calling:
    """How a class of attention modules calls its attention.

    In the module `file` it looks its function up in `ALL_ATTENTION_FUNCTIONS`, or falls back on the
    function that is called `eager` there, None if there is none. `named` are the arguments that mean
    something: those that the class or any of these functions has a name for. Whatever else arrives
    came with the user's call, through the `**kwargs` of all modules, and nothing reads it.
    """

    file: str
    eager: str | None
    named: frozenset[str]


@torch.compiler.assume_constant_result  # torch.compile would otherwise follow how it is found out
def calling(cls: type[nn.Module]) -> Calling:
    """How a class of attention modules calls its attention. Raises TypeError if it does not use the interface."""
    return _read(cast(Hashable, cls))


@cache
def dispatching(cls: Hashable) -> tuple[FunctionType, ...]:
    """The functions of a class that look up transformers' attention interface."""
    # transformers has no list of its attention modules; that a module's code looks its function up
    # in the interface is the one property they all share
    functions = (inspect.unwrap(f) for _, f in inspect.getmembers(cls, inspect.isfunction))
    return tuple(cast(FunctionType, f) for f in functions if INTERFACE in f.__code__.co_names)


@cache
def _read(cls: Hashable) -> Calling:
    if not (code := dispatching(cls)):
        raise TypeError(f"{cls!r} does not look up transformers' attention interface")
    file = code[0].__globals__
    theirs = [f for f in file[INTERFACE].values() if f.__module__.startswith("transformers.")]
    eager = next((name for each in code for name in each.__code__.co_names if _attends(file.get(name))), None)
    own = [] if eager is None else [file[eager]]
    named = {name for f in (*theirs, *own) for name in inspect.signature(f).parameters}
    named |= {name for f in (*code, *own) for name in _strings(f.__code__.co_consts)}
    return Calling(file["__name__"], eager, frozenset(named))


def _attends(found: Any) -> bool:
    # every attention function is called with its module first
    return inspect.isfunction(found) and next(iter(inspect.signature(found).parameters), None) == "module"


def _strings(constants: tuple[Any, ...]) -> Iterator[str]:
    # names of keyword arguments, and those that are read from **kwargs, are constants of a function's code
    for each in constants:
        if isinstance(each, str):
            yield each
        elif isinstance(each, tuple):
            yield from _strings(each)
