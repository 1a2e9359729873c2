"""Who takes part, who cannot and why, and that none computes anything else than contender."""

import importlib.util
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from crisp_attention.bench import contender, peers, roster
from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.contender import Contender
from crisp_attention.bench.methods import DEFAULT, achieved_sparsity, named
from crisp_attention.bench.peers import eager_topk
from crisp_attention.bench.rounds import Effort
from crisp_attention.bench.timed import disagreeing, measure_attention
from crisp_attention.methods.spec import parse

SHAPE = Shape(1, 2, 128, 16)
NO_FLEX = {peers.FLEX: "compiles for half a minute"}


def names(method, shape=SHAPE, skip=NO_FLEX):
    found, absent = roster.roster(method, shape, skip)
    return [each.name for each in found], {each.name: each.reason for each in absent}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("word", DEFAULT)
def test_all_agree(word, backward):
    reasons = disagreeing(named(word, 0.8, 512), SHAPE, backward, NO_FLEX)
    absent = {"x-transformers"} if importlib.util.find_spec("x_transformers") is None else set()
    assert set(reasons) <= {peers.FLEX} | absent, reasons


@pytest.mark.parametrize("backward", [False, True])
def test_one_that_computes_something_else_is_caught_and_not_timed(monkeypatch, backward):
    def off_by_one(method, shape):
        right = eager_topk(method, replace(shape, length=shape.length - 8))  # keeps fewer
        return Contender("eager top-k", right.attend)

    monkeypatch.setattr(roster, "eager_topk", off_by_one)
    case = Case(parse("topk"), SHAPE, backward)
    (cell,) = measure_attention([case], Effort(3, 0), 1e11, True, lambda what: None)
    reasons = {each.name: each.reason for each in cell.absent}
    what = "gradients differ" if backward else "output differs"
    assert reasons["eager top-k"].startswith(f"wrong: its {what} from the reference by ")
    assert "eager top-k" not in {timed.name for timed in cell.timed}
    assert {contender.DENSE, contender.CRISP, contender.REFERENCE} <= {timed.name for timed in cell.timed}


def test_our_own_is_caught_too(monkeypatch):
    nans = Contender(contender.CRISP, lambda query, key, value: value * torch.nan)
    real = roster.crisp
    monkeypatch.setattr(
        roster, "crisp", lambda method, backend="auto": nans if backend == "auto" else real(method, backend)
    )
    assert disagreeing(parse("topk"), SHAPE, False, NO_FLEX)[contender.CRISP].startswith("wrong: ")


def test_one_that_fails_says_how(monkeypatch):
    def broken(query, key, value):
        raise TypeError("no such thing\nat all")

    monkeypatch.setattr(roster, "eager_topk", lambda method, shape: Contender("eager top-k", broken))
    reasons = disagreeing(parse("topk"), SHAPE, False, NO_FLEX)
    assert reasons["eager top-k"] == "fails: TypeError: no such thing"


@pytest.mark.parametrize(
    ("spec", "module", "name", "package"),
    [
        ("topk", "x_transformers", "x-transformers", "x-transformers"),
        ("entmax", "entmax", "entmax package", "entmax"),
    ],
)
def test_a_package_that_is_not_installed_is_named(monkeypatch, spec, module, name, package):
    for each in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setattr("sys.meta_path", [_Without(module), *sys.meta_path])
    present, absent = names(parse(spec))
    assert name not in present
    assert absent[name] == f"not installed: pip install {package}"


class _Without:
    """Imports everything but one module."""

    def __init__(self, module):
        self.module = module

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.module)


def test_flex_attention_says_why_it_is_not_there(monkeypatch):
    assert "cannot rank a row" in names(parse("topk"), skip={})[1][peers.FLEX]
    assert (
        "not a whole number of blocks of 64"
        in names(parse("block_topk"), replace(SHAPE, length=100), {})[1][peers.FLEX]
    )
    monkeypatch.setattr(peers, "which", lambda name: None)
    assert "needs a C++ compiler" in names(parse("block_topk"), skip={})[1][peers.FLEX]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning")
def test_flex_attention_chooses_the_blocks_that_we_choose():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler")
    assert peers.FLEX not in disagreeing(parse("block_topk"), SHAPE, False, {})
    assert disagreeing(parse("block_topk"), SHAPE, True, {})[peers.FLEX] == "has no backward pass on the CPU"


def test_what_would_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(roster, "free_bytes", lambda device: 1 << 30)
    present, absent = names(parse("topk"), replace(SHAPE, heads=12, length=8192))
    assert absent["eager top-k"] == "needs about 15 GiB, only 1 GiB are free"
    assert "eager top-k" not in present


@pytest.mark.parametrize("word", ["topk", "topp", "threshold", "nofm"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_methods_are_about_as_sparse_as_asked(word, sparsity):
    shape = Shape(1, 1, 512, 64)
    assert achieved_sparsity(named(word, sparsity, 512), shape) == pytest.approx(sparsity, abs=0.06)


def test_a_spec_is_taken_as_it_is():
    assert named("block_topk:block_size=16", 0.3, 512).spec == "block_topk:sparsity=0.8:block_size=16"
    with pytest.raises(ValueError, match="it is fitted to a model"):
        named("sparsefinder", 0.8, 512)


def test_what_a_method_learns_is_drawn_and_its_linear_part_counts_as_nothing_kept():
    shape, method = Shape(1, 2, 256, 16), named("sparse_linear:critical=0.25:block_size=16", 0.8, 256)
    assert achieved_sparsity(method, shape) == 0.75
    drawn, zero = (
        contender.crisp(method).attend(*shape.inputs()),
        contender.crisp(replace(method, branch=None)).attend(*shape.inputs()),
    )
    assert (drawn - zero).abs().max() > 0.01
    assert drawn.equal(contender.crisp(method).attend(*shape.inputs()))
    assert [each.name for each in roster.roster(method, shape, {})[0]] == [
        contender.CRISP,
        contender.REFERENCE,
    ]
