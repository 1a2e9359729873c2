"""From options to what is measured."""

from dataclasses import dataclass, fields, replace

from crisp_attention.bench import situations
from crisp_attention.bench.bars import MEMORY_LENGTH
from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.methods import DEFAULT, named
from crisp_attention.bench.options import PARTS, BenchOptions, Part
from crisp_attention.bench.rounds import LEAST, Effort
from crisp_attention.bench.situation import Situation
from crisp_attention.errors import OptionError
from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.method import Method

SHORT, SHORT_BATCH = 128, 32  # sequences up to this many tokens come in batches
OTHERS = (128, 512, 2048)
LENGTHS: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {
        "topk": (16, 64, 128, 512, 1024, 2048, 4096, 8192),
        "block_topk": (512, 2048, 4096, 8192),
        "entmax": (64, 512, 1024, 2048, 4096),
        "sparse_linear": (8192, 16384),
    },
    "cuda": {
        "topk": (1024, 4096, 8192, 16384),
        "block_topk": (1024, 4096, 16384, 32768),
    },
    "quick": {"topk": (64, 256), "block_topk": (512,), "entmax": (256,)},
}
STEPS = {
    False: ((32, 16), (32, 32), (32, 64), (32, 128), (8, 512)),
    True: ((32, 16), (8, 64)),
}  # batch, length
SHARE = 4  # of many situations each gets this part of the time that others have
MEMORY = ("topk", "sparse_linear")  # methods
MEMORY_AT = {False: 16384, True: 2048}  # tokens
# those whose memory is to be linear in the length, measured at MEMORY_LENGTH
LINEAR = (
    *("dense", "topk", "topk:sparsity=0.0", "topp", "topk_topp", "threshold", "nofm", "nofm:n=8:m=64"),
    *("entmax", "entmax:alpha=1.25", "entmax:alpha=learned", "random"),
    *("window:width=129", "block_topk", "block_topk+topk:sparsity=0.5", "sparse_linear:critical=0.05"),
    *("bigbird:width=129", "strided:stride=16", "lsh", "random_pairs"),
)
LINEAR_CAUSAL = ("topk", "window:width=129", "block_topk")
CPU_ONLY: tuple[Part, ...] = (*situations.PARTS, "hooks", "pruning", "sparsefinder")
EFFORT = {False: Effort(30, 20), True: Effort(5, 0.5)}


@dataclass(frozen=True)
class Plan:
    """All that one run measures; `first_call` and `memory` are at one shape for all their methods.

    `situations` by their part; `brief` is the effort for each of them.
    """

    parts: tuple[Part, ...]
    cases: list[Case]
    steps: tuple[tuple[int, int], ...]
    step_method: Method
    memory: list[Case]
    first_call: list[Case]
    situations: dict[str, list[Situation]]
    effort: Effort
    brief: Effort


def planned(options: BenchOptions) -> Plan:
    """What the options ask for. Raises OptionError for an invalid one."""
    _check(options)
    cuda = options.device == "cuda"
    heads, width = options.heads or (16 if cuda else 12), options.width or (128 if cuda else 64)
    dtype = options.dtype or ("bfloat16" if cuda else "float32")

    def shape(length: int, batch: int | None = options.batch) -> Shape:
        batch = batch or (SHORT_BATCH if length <= SHORT else 1)
        return Shape(batch, heads, length, width, dtype, options.device)

    def at(word: str, length: int) -> Method:
        try:
            return named(word, options.sparsity, length)
        except (TypeError, ValueError) as error:
            raise OptionError(f"method {word}: {error}", "method") from error

    known = LENGTHS["quick" if options.quick else options.device]
    words = options.method or (tuple(known) if options.quick else DEFAULT)
    cases = [
        Case(at(word, length), shape(length), backward)
        for word in words
        for length in options.lengths
        or known.get(word.partition(":")[0], OTHERS[:2] if options.quick else OTHERS)
        for backward in (False, True)
    ]
    topk, usual = at("topk", SHORT), EFFORT[options.quick]
    rounds = options.rounds or usual.rounds
    long = shape(MEMORY_LENGTH, 1)
    linear = [Case(at(word, MEMORY_LENGTH), long, True) for word in LINEAR]
    linear += [Case(at(word, MEMORY_LENGTH), replace(long, causal=True), True) for word in LINEAR_CAUSAL]
    return Plan(
        parts=options.parts or _usual(options),
        cases=cases,
        steps=STEPS[options.quick],
        step_method=topk,
        memory=[
            Case(at(word, MEMORY_AT[options.quick]), shape(MEMORY_AT[options.quick], 1), True)
            for word in options.method or (MEMORY[:1] if options.quick else MEMORY)
        ]
        + ([] if options.quick or options.method else linear),
        first_call=[
            Case(at(word, 512), shape(512, 1), True) for word in (words[:1] if options.quick else words)
        ],
        situations={part: situations.planned(part, options.quick) for part in situations.PARTS},
        effort=Effort(rounds, usual.seconds),
        brief=Effort(min(rounds, LEAST) if options.quick else rounds, usual.seconds / SHARE),
    )


def _usual(options: BenchOptions) -> tuple[Part, ...]:
    left_out = {"decoders", "first-call", "hooks"} if options.quick else set[str]()
    if options.device != "cpu":
        left_out |= {*CPU_ONLY}
    if options.text is None:
        left_out.add("sparsefinder")
    return tuple(part for part in PARTS if part not in left_out)


def _check(options: BenchOptions) -> None:
    if options.learn:
        _check_learning(options)
    if options.parts == ():
        raise OptionError(f"parts needs at least one of {', '.join(PARTS)}", "parts")
    if "sparsefinder" in (options.parts or ()):
        if options.text is None:
            raise OptionError(
                "parts sparsefinder needs --text, as random queries and keys have no pairs to find", "parts"
            )
    elif options.text is not None and (options.parts or options.device != "cpu"):
        raise OptionError(
            "text is for the part sparsefinder on the CPU, which this run does not have", "text"
        )
    for part in CPU_ONLY:
        if part in (options.parts or ()) and options.device != "cpu":
            raise _cpu_only(part, options)
    whole = [("lengths", length) for length in options.lengths]
    whole += [(name, getattr(options, name)) for name in ("batch", "heads", "width", "threads", "rounds")]
    name = "sparsity"
    try:
        check_number(name, options.sparsity, "[0, 1)")
        for name, value in whole:
            if value is not None:
                check_whole(name, value, 1)
    except (TypeError, ValueError) as error:
        raise OptionError(str(error), name) from error


def _check_learning(options: BenchOptions) -> None:
    for each in fields(options):
        if each.name not in ("learn", "device", "threads") and getattr(options, each.name) != each.default:
            raise OptionError(f"learn takes device and threads alone, got {each.name} too", "learn")


def _cpu_only(part: Part, options: BenchOptions) -> OptionError:
    return OptionError(f"parts {part} is measured on the CPU, not on {options.device}", "parts")
