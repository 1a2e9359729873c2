"""Results as a run would leave them, made from given times."""

from dataclasses import asdict

from crisp_attention.bench.bars import BARS
from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.contender import CRISP, DENSE, REFERENCE, Absent
from crisp_attention.bench.limit import arithmetic, products
from crisp_attention.bench.results import Attention, FirstCall, Memory, Results, Step
from crisp_attention.bench.rounds import compared
from crisp_attention.methods.method import Method
from crisp_attention.methods.spec import parse

RATE = 1e11
PEERS = {"topk": {"eager top-k": 18.0, "x-transformers": 21.0}, "entmax": {"entmax package": 25.0}}
MACHINE = {"processor": "a processor", "threads": 2, "versions": {"torch": "2.13.0"}}


def attention(
    spec: str, length: int, backward: bool = False, ratio: float = 1.1, others: dict[str, float] | None = None
) -> Attention:
    """A cell in which dense runs at half the machine's rate and ours takes `ratio` times as long."""
    method: Method = parse(spec)
    shape = Shape(32 if length <= 128 else 1, 12, length, 64)
    case = Case(method, shape, backward)
    dense = products(Case(parse("dense"), shape, backward), 1.0) * shape.products / (RATE / 2)
    ratios = {CRISP: ratio, **({REFERENCE: 9.0} if others is None else {}), **(others or {})}
    times = {DENSE: [dense] * 3} | {name: [dense * each] * 3 for name, each in ratios.items()}
    return Attention(
        method=method.spec,
        name=method.name,
        shape=asdict(shape),
        backward=backward,
        achieved_sparsity=0.8,
        arithmetic=arithmetic(case, 0.2),
        limit_seconds=products(case, 0.2) * shape.products / RATE,
        timed=compared(times, DENSE),
        absent=[Absent("FlexAttention", "cannot rank a row")],
    )


def results() -> Results:
    """A full run on a CPU in which every bar holds."""
    made = Results(["crisp", "bench"], {}, MACHINE, {"float32": RATE})
    lengths = {bar.method: () for bar in BARS}
    for bar in BARS:
        if bar.part == "attention" and bar.shape["device"] == "cpu":
            lengths[bar.method] += tuple(bar.sizes)
    for spec, at in lengths.items():
        ratio = {"block_topk": 0.25, "sparse_linear": 0.1}.get(parse(spec).name, 0.9)
        for length in at:
            for backward in (False, True):
                peers = {REFERENCE: 9.0} | PEERS.get(parse(spec).name, {})
                made.attention.append(attention(spec, length, backward, ratio, peers))
    times = {DENSE: [0.1, 0.1, 0.1], CRISP: [0.1, 0.101, 0.102]}
    for length in (16, 32, 64, 128):
        made.step.append(
            Step(
                "builtin:minilm",
                "topk:sparsity=0.8",
                32,
                length,
                "float32",
                "cpu",
                compared(times, DENSE),
                [],
            )
        )
    shape = asdict(Shape(1, 12, 16384, 64))
    for backward in (False, True):
        peaks = {DENSE: 100 << 20, CRISP: 110 << 20}
        for spec in ("topk:sparsity=0.8", "sparse_linear:critical=0.05"):
            made.memory.append(Memory(spec, shape, backward, peaks, 1.1, "VmHWM", []))
    taken = {"forward": 1.5, "backward": 3.0, "later": 0.01}
    made.first_call.append(FirstCall("topk:sparsity=0.8", {"empty": taken, "filled": taken}, []))
    return made
