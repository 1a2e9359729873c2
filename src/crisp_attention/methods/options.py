"""A part's options: as plain data that can be saved, and as text."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

from crisp_attention.methods.part import P, Part, called, is_ours, options, registered, where

# where a class can be imported from, in what is saved of it; no field of a dataclass can have that name
CLASS = "class"


def to_dict(part: Part) -> dict[str, Any]:
    """A plain dictionary that JSON can hold; `from_dict` is its inverse.

    Keyword-only options, such as every rule's temperature, are in it where they are not at their default.
    Raises ValueError for a class without a name.
    """
    check_named(part)
    origin = {} if is_ours(type(part)) else {CLASS: where(type(part))}
    usual = {f.name: f.default for f in fields(part) if f.kw_only}
    own = {k: v for k, v in _own(part).items() if k not in usual or v != usual[k]}
    return {"name": part.name, **origin, **own}


def from_dict(kind: type[P], data: Any) -> P:
    """A part from its dictionary. Raises ValueError for a name or an option that it does not know."""
    if not isinstance(data, Mapping) or "name" not in data:
        raise ValueError(f"expected a dictionary with a 'name', got {data!r}")
    known, name = registered(kind), data["name"]
    own = {key: value for key, value in data.items() if key != "name" and (key != CLASS or ":" not in value)}
    if name not in list(known):
        raise ValueError(f"unknown name {name!r}; {_missing(data, known)}")
    cls = known[name]
    names = list(options(cls))
    if unknown := set(own) - set(names):
        has = f"it has {', '.join(names)}" if names else "it has none"
        raise ValueError(f"{name!r} has no option {', '.join(sorted(unknown))}; {has}")
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.name not in own]
    if needed:
        raise ValueError(f"{name!r} needs the option {', '.join(needed)}")
    try:
        return cls(**own)
    except TypeError as error:
        raise ValueError(f"{name!r}: {error}") from error


def in_words(part: Part) -> str:
    """`topk:sparsity=0.5`: name, first option, and what is not a default.

    A class without a name goes by that of the class.
    """
    needed = {f.name: getattr(part, f.name) for f in fields(part) if f.default is MISSING}
    usual, own = _own(type(part)(**needed)), _own(part)
    positional = [f.name for f in fields(part) if not f.kw_only]
    return words(called(part), own, usual, (*needed, *positional[:1]))


def words(
    name: str, own: Mapping[str, Any], usual: Mapping[str, Any], always: Sequence[str] | None = None
) -> str:
    """A name and its options, those in `always` (by default the first) and what is not `usual`."""
    always = list(own)[:1] if always is None else always
    told = {k: v for k, v in own.items() if v is not None and (k in always or v != usual[k])}
    return ":".join([name, *(f"{k}={v}" for k, v in told.items())])


def options_of(part: type[Part]) -> dict[str, Any]:
    """The options of a part and their defaults, None for one that is required or computed."""
    if any(f.default is MISSING for f in fields(part)):
        return {name: None if f.default is MISSING else f.default for name, f in options(part).items()}
    return _own(part())


def check_named(part: Part) -> None:
    """Raise ValueError if the part's class has no name of its own."""
    if "name" not in vars(type(part)):
        raise ValueError(
            f"{where(type(part))} has no name of its own, so it cannot be saved or written as a spec: "
            f'give the class one, such as name: ClassVar[str] = "{type(part).__name__.lower()}"'
        )


def _own(part: Part) -> dict[str, Any]:
    values = asdict(part)
    return {name: values[name] for name in options(type(part))}


def _missing(data: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    module, _, name = str(data.get(CLASS, "")).partition(":")
    if name:
        return f"first import the class {name} from the module {module}, where it was defined"
    return f"the known names are {', '.join(known)}"
