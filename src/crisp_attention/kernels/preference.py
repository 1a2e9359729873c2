"""Which kernel was the fastest on this machine for calls like one, as `crisp bench --learn` measured it."""

import json
import math
import re
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from crisp_attention.kernels.call import Call
from crisp_attention.kernels.lightest import learns
from crisp_attention.methods.layouts import BlockTopK, Full
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import Dense, TopK
from crisp_attention.this_machine import cache_folder, processor

FORMAT = 1
REFERENCE = "reference"
# the reference holds matrices of all pairs: where they are more, it is no choice however fast it is
FEW_PAIRS = 2**20
COMMAND = "crisp bench --learn"
# calls in which nothing is dropped; where a share of each row is kept; where a share of the blocks is
Form = Literal["dense", "rows", "blocks"]


class Kind(NamedTuple):
    """What says which kernel is the fastest for a call.

    `bits` are those of a number, `density` is the share that the method is to keep, `pairs` are those of a query and a
    key in all examples and heads together. A single query is never causal.
    """

    form: Form
    bits: int
    causal: bool
    gradients: bool
    density: float
    queries: int
    pairs: int
    width: int

    def distance(self, other: "Kind") -> float:
        """How often density, queries, pairs and width are doubled or halved from one to the other, in all.

        Infinite where they differ in anything else.
        """
        if self[:4] != other[:4]:
            return math.inf
        return sum(abs(math.log2(one / two)) for one, two in zip(self[4:], other[4:], strict=True))


@dataclass(frozen=True)
class Measured:
    """The seconds that each kernel took for a call of one kind, in the order in which the kernels are to be taken."""

    kind: Kind
    seconds: dict[str, float]

    @property
    def order(self) -> tuple[str, ...]:
        """The kernels, the fastest first, but that one that is hardly faster than another is no reason to change."""
        return tuple(self.seconds)


@dataclass(frozen=True, eq=False)
class Table:
    """What was measured on one device, `machine` in words, and with which `versions` of packages."""

    machine: str
    versions: dict[str, str]
    kinds: tuple[Measured, ...]

    def nearest(self, kind: Kind) -> Measured | None:
        """What was measured at the least distance, the first of several; None if all are infinitely far."""
        found = min(self.kinds, key=lambda row: kind.distance(row.kind), default=None)
        return None if found is None or kind.distance(found.kind) == math.inf else found

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        rows = [{**row.kind._asdict(), "seconds": row.seconds} for row in self.kinds]
        return {"format": FORMAT, **asdict(self), "kinds": rows}


def kind_of(call: Call) -> Kind | None:
    """The kind of a call; None for methods whose density only scores tell, and for what is not measured at all."""
    method, (batch, heads, queries, width), keys = call.method, call.query.shape, call.key.shape[2]
    pairs = batch * heads * queries * keys
    if type(method) is not Method or method.branch is not None or not pairs or not width:
        return None
    if call.modifier is not None or call.valid is not None or call.span is not None:
        return None
    form: Form
    if method.drops_nothing(keys):
        form, density = "dense", 1.0
    elif type(method.layout) is Full and type(rule := method.rule) is TopK:
        form = "rows"
        density = 1 - rule.sparsity if rule.sparsity is not None else (rule.keep or 1) / keys
    elif type(method.layout) is BlockTopK and type(method.rule) is Dense and call.blocks is not None:
        form, density = "blocks", 1 - method.layout.sparsity
    else:
        return None
    bits, gradients = 8 * call.query.dtype.itemsize, learns((call.query, call.key, call.value))
    return Kind(form, bits, call.causal and queries > 1, gradients, density, queries, pairs, width)


def order(call: Call) -> tuple[str, ...]:
    """The kernels that were measured for calls like this one on this machine, the fastest first; none if none were.

    The reference is not among them where all others were faster: it comes after all kernels anyway.
    Programs that torch.compile makes are for calls of all sizes, and not what was measured.
    """
    if torch.compiler.is_compiling() or (known := table(call.query.device)) is None:
        return ()
    kind = kind_of(call)
    return () if kind is None else _order(known, kind)


@lru_cache(maxsize=4096)
def _order(known: Table, kind: Kind) -> tuple[str, ...]:
    found = known.nearest(kind)
    if found is None:
        return ()
    last = found.order[-1] == REFERENCE
    return tuple(each for each in found.order if each != REFERENCE or not (last or kind.pairs > FEW_PAIRS))


def table(device: torch.device) -> Table | None:
    """What was measured on this device, with as many threads as now; None where nothing was.

    With a warning also None, once for a file of no use.
    """
    return _table(device, torch.get_num_threads()) if device.type in ("cpu", "cuda") else None


@cache
def _table(device: torch.device, threads: int) -> Table | None:
    try:
        return read(path(device))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        message = f"{error}: kernels are taken in the order that Crisp comes with. Run `{COMMAND}` again, or delete it"
        warnings.warn(message, stacklevel=2)
        return None


def forget() -> None:
    """Read tables again when they are next needed."""
    _table.cache_clear()
    _order.cache_clear()


def path(device: torch.device) -> Path:
    """The file with this device's table: devices of several names have one each, processors by number of threads."""
    return (
        cache_folder() / "kernels" / f"{re.sub(r'[^A-Za-z0-9]+', '-', device_name(device)).strip('-')}.json"
    )


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor, with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def versions() -> dict[str, str]:
    """Of the packages that kernels are made of, as far as they are installed; a table is for these alone."""
    found = {"crisp-attention": version("crisp-attention"), "torch": str(torch.__version__)}
    for package in ("numba", "triton"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def read(file: Path) -> Table:
    """The table in a file. Raises ValueError, with its path, if it is none or was measured with other versions."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(
                f"{file} has the format {found['format']!r}, and this version of Crisp reads {FORMAT}"
            )
        known = Table(str(found["machine"]), dict(found["versions"]), tuple(map(_measured, found["kinds"])))
    except (LookupError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no table of kernels ({type(error).__name__}: {error})") from error
    for package, here in versions().items():
        if (then := known.versions.get(package)) != here:
            raise ValueError(f"{file} was measured with {package} {then}, and this is {here}")
    return known


def _measured(row: dict[str, Any]) -> Measured:
    kind, seconds = (
        Kind(**{name: value for name, value in row.items() if name != "seconds"}),
        dict(row["seconds"]),
    )
    numbers = [*kind[4:], *seconds.values()]
    if kind.form not in get_args(Form) or not seconds or not all(0 < each < math.inf for each in numbers):
        raise TypeError(f"{row} is no kind of call")
    return Measured(kind, seconds)
