"""Kernels are taken by what was measured on this machine for the most similar calls, or as before where nothing was."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import crisp_attention as crisp
from crisp_attention import BigBird, BlockTopK, Dense, Entmax, Method, PerHead, SparseLinear, TopK, TopP
from crisp_attention.files import write_json
from crisp_attention.kernels import dispatch, preference
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.preference import Kind, Measured, Table, kind_of, versions
from crisp_attention.kernels.recording import recording
from crisp_attention.methods.method import as_method

CPU = torch.device("cpu")
ROWS = Kind("rows", 32, False, False, 0.5, 16, 2048, 64)
DENSE = ROWS._replace(form="dense", density=1.0)

kinds = st.builds(
    Kind,
    st.sampled_from(["dense", "rows"]),
    st.sampled_from([16, 32]),
    st.booleans(),
    st.booleans(),
    st.floats(0.01, 1),
    st.integers(1, 5000),
    st.integers(1, 10**9),
    st.integers(1, 512),
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty folder for caches, which is read anew before and after."""
    monkeypatch.setenv("CRISP_CACHE", str(tmp_path))
    dispatch.forget()
    yield tmp_path
    dispatch.forget()


@pytest.fixture
def learned(cache):
    """Writes a table with these seconds of kernels by kind."""

    def write(seconds: dict[Kind, dict[str, float]], **changes: object) -> Path:
        rows = (
            Measured(kind, dict(sorted(each.items(), key=lambda taken: taken[1])))
            for kind, each in seconds.items()
        )
        table = Table("a machine", versions(), tuple(rows))
        file = preference.path(CPU)
        file.parent.mkdir(exist_ok=True)
        write_json(file, {**table.plain(), **changes})
        dispatch.forget()
        return file

    return write


def call(method, queries=16, keys=16, gradients=False, **more) -> Call:
    q, k, v = (torch.randn(1, 8, n, 64, requires_grad=gradients) for n in (queries, keys, keys))
    return Call(q, k, v, method if isinstance(method, PerHead) else as_method(method), 0.125, **more)


def kernel_of(given: Call) -> str:
    (part,) = dispatch.plan(given)
    return part.kernel


@given(kinds, st.lists(kinds, max_size=8))
def test_the_nearest_kind_against_brute_force(kind, known):
    table = Table("a machine", {}, tuple(Measured(each, {"cpu": 1.0}) for each in known))
    allowed = [each for each in known if each[:4] == kind[:4]]

    def doublings(other: Kind) -> float:
        product = 1.0
        for name in ("density", "queries", "pairs", "width"):
            one, two = getattr(kind, name), getattr(other, name)
            product *= max(one, two) / min(one, two)
        return math.log2(product)

    found = table.nearest(kind)
    assert (found is None) == (allowed == [])
    if found is not None:
        assert found.kind in allowed
        assert doublings(found.kind) <= min(map(doublings, allowed)) + 1e-9
        assert kind.distance(found.kind) == pytest.approx(doublings(found.kind))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (call(TopK(0.75)), ROWS._replace(density=0.25)),
        (call(TopK(keep=4), causal=True), ROWS._replace(density=0.25, causal=True)),
        (call(TopK(keep=16)), DENSE),
        (call(TopK(0.0)), DENSE),
        (call(Dense(), gradients=True), DENSE._replace(gradients=True)),
        (call(Dense(), 1, 100, causal=True, first_query=99), DENSE._replace(queries=1, pairs=800)),
        (call(BlockTopK(0.5, 4)), ROWS._replace(form="blocks")),
        (call(BlockTopK(0.5, 16)), DENSE),
        (call(TopP(0.5)), None),
        (call(Entmax()), None),
        (call(BigBird(3, block_size=4)), None),
        (call(Method(BlockTopK(0.5, 4), TopK(0.5))), None),
        (call(PerHead((Method(rule=TopK(0.5)),) * 8)), None),
        (call(TopK(0.5), 0), None),
    ],
    ids=lambda each: str(each.method) if isinstance(each, Call) else "",
)
def test_the_kind_of_a_call(given, kind):
    assert kind_of(dispatch._with_blocks(given, "auto")) == kind


def test_a_branch_has_no_kind():
    method = SparseLinear(0.5, block_size=4)
    assert kind_of(dispatch._with_blocks(call(method), "auto")) is None


def test_gradients_count_only_where_they_are_recorded():
    with torch.no_grad():
        assert kind_of(call(TopK(0.5), gradients=True)) == ROWS


def test_a_table_that_prefers_another_kernel_is_obeyed(learned):
    learned(
        {
            ROWS: {"cpu": 2.0, "reference": 1.0},
            ROWS._replace(queries=1024, pairs=2**23): {"cpu": 1.0},
            DENSE: {"sdpa": 3.0, "cpu": 1.0, "reference": 2.0},
        }
    )
    assert kernel_of(call(TopK(0.5))) == kernel_of(call(TopK(0.8), 30, 30)) == "reference"
    assert kernel_of(call(TopK(0.5), 900, 900)) == "cpu"
    assert kernel_of(call(Dense())) == "cpu"
    given = call(Dense(), 17, 17)
    with recording() as used:
        output, _ = dispatch.attention(given)
    assert used == {"cpu"}
    torch.testing.assert_close(output, dispatch.attention(given, "reference")[0])
    # what was asked for by name is taken all the same, and what the table does not know goes as before
    assert dispatch.plan(call(Dense()), "sdpa")[0].kernel == "sdpa"
    assert kernel_of(call(Dense(), gradients=True)) == "sdpa"
    assert kernel_of(call(TopK(0.5), causal=True)) == "cpu"
    assert kernel_of(call(Entmax())) == "cpu"


def test_it_is_obeyed_by_calls_like_earlier_ones(learned):
    given = call(TopK(0.5))
    with torch.no_grad(), recording() as before:
        dispatch.attention(given)
        dispatch.attention(given)
    learned({ROWS: {"reference": 1.0, "cpu": 2.0}})
    with torch.no_grad(), recording() as after:
        dispatch.attention(given)
    assert (before, after) == ({"cpu"}, {"reference"})


def test_the_fastest_that_lacks_nothing_is_taken(learned):
    learned({DENSE: {"cpu": 3.0, "sdpa": 1.0, "reference": 2.0}})
    given = replace(call(Dense()), scale=-0.125)  # which SDPA would multiply masks with
    assert kernel_of(given) == "reference"
    learned({DENSE: {"cpu": 2.0, "sdpa": 1.0, "reference": 3.0}})
    assert kernel_of(given) == "cpu"
    learned({DENSE: {"sdpa": 1.0, "of another version": 0.5, "reference": 3.0}})
    assert kernel_of(given) == "cpu"  # which comes before the reference unless it was measured to be slower


def test_the_reference_is_not_taken_for_many_pairs(learned):
    learned({ROWS: {"reference": 1.0, "cpu": 2.0}})
    assert kernel_of(call(TopK(0.5), 362, 362)) == "reference"  # of 8 heads: fewer than 2^20 pairs
    assert kernel_of(call(TopK(0.5), 363, 363)) == "cpu"


def test_a_table_is_for_the_number_of_threads_that_it_was_measured_with(learned):
    threads = torch.get_num_threads()
    learned({ROWS: {"reference": 1.0, "cpu": 2.0}})
    assert kernel_of(call(TopK(0.5))) == "reference"
    try:
        torch.set_num_threads(threads + 1)
        assert kernel_of(call(TopK(0.5))) == "cpu"
    finally:
        torch.set_num_threads(threads)


def test_masks_and_what_changes_the_softmax_were_not_measured(learned):
    learned({DENSE: {"cpu": 1.0, "sdpa": 3.0}, ROWS: {"reference": 1.0, "cpu": 2.0}})
    assert kernel_of(call(TopK(0.5), softcap=5.0)) == "cpu"
    assert kernel_of(call(TopK(0.5), span=torch.tensor([[0, 9]]))) == "cpu"
    assert kernel_of(call(Dense(), valid=torch.ones(1, 1, 16, 16, dtype=torch.bool).tril(3))) == "cpu"


def test_groups_of_heads_go_by_their_own_kind(learned):
    learned({ROWS: {"cpu": 2.0, "reference": 1.0}})
    given = call(PerHead((*[Method(rule=TopK(0.5))] * 4, *[Method(rule=TopP(0.5))] * 4)))
    assert [part.kernel for part in dispatch.plan(given)] == ["reference", "cpu"]


def test_compiled_programs_go_as_before(learned, monkeypatch):
    learned({ROWS: {"cpu": 2.0, "reference": 1.0}})
    given = call(TopK(0.5))
    assert preference.order(given) == ("reference", "cpu")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert preference.order(given) == ()


@pytest.mark.slow
def test_a_model_is_compiled_for_all_sizes_under_a_table(learned):
    learned({ROWS: {"cpu": 2.0, "reference": 1.0}})
    torch._dynamo.reset()
    attend = torch.compile(
        lambda *states: crisp.attention(*states, TopK(0.5)), backend="eager", fullgraph=True, dynamic=True
    )
    for length in (16, 40):
        given = call(TopK(0.5), length, length)
        states = given.query, given.key, given.value
        torch.testing.assert_close(attend(*states), crisp.attention(*states, TopK(0.5)))


def test_explain_says_where_it_was_measured(learned):
    model = crisp.sparsify(torch.nn.TransformerEncoderLayer(64, 1, batch_first=True), TopK(0.5))
    learned({ROWS: {"cpu": 2.0, "reference": 1.0}})
    (row,) = crisp.explain(model.eval(), length=16).rows
    assert row.kernel == "reference"
    assert row.why == "it lacks nothing and is the fastest on a machine, measured by crisp bench --learn"
    assert row.lacks["cpu"] == "supported, but ranked lower"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": {**versions(), "torch": "1.0"}}, "was measured with torch 1.0, and this is "),
        ({"versions": {"torch": torch.__version__}}, "was measured with crisp-attention None, and this is "),
        ({"format": 0}, "has the format 0, and this version of Crisp reads 1"),
        ({"kinds": [{**ROWS._asdict(), "seconds": {}}]}, "is no table of kernels"),
        ({"kinds": [{**ROWS._asdict(), "seconds": {"cpu": "quick"}}]}, "is no table of kernels"),
        (
            {"kinds": [{**ROWS._replace(width=0)._asdict(), "seconds": {"cpu": 1.0}}]},
            "is no table of kernels",
        ),
        ({"kinds": [{"form": "rows", "seconds": {"cpu": 1.0}}]}, "is no table of kernels"),
        ({"kinds": 3}, "is no table of kernels"),
    ],
)
def test_tables_of_no_use_are_ignored_with_one_warning(learned, changes, message):
    file = learned({ROWS: {"cpu": 2.0, "reference": 1.0}}, **changes)
    with pytest.warns(UserWarning, match="Run `crisp bench --learn` again, or delete it") as told:
        assert kernel_of(call(TopK(0.5))) == kernel_of(call(TopK(0.8))) == "cpu"
    (warning,) = told
    assert str(warning.message).startswith(f"{file} {message}")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b""])
def test_files_that_are_no_tables_are_ignored_with_one_warning(learned, content):
    learned({}).write_bytes(content)
    with pytest.warns(UserWarning, match="is no table of kernels"):
        assert kernel_of(call(TopK(0.5))) == "cpu"


def test_a_file_that_cannot_be_read_is_ignored_with_a_warning(cache):
    preference.path(CPU).mkdir(parents=True)
    with pytest.warns(UserWarning, match="Run `crisp bench --learn` again"):
        assert kernel_of(call(TopK(0.5))) == "cpu"


def test_without_a_table_nothing_is_said(cache):
    with warnings.catch_warnings(action="error"):
        assert kernel_of(call(TopK(0.5))) == "cpu"
        assert kernel_of(call(Dense())) == "sdpa"
        assert preference.table(torch.device("meta")) is None
    assert list(cache.iterdir()) == []


def test_what_is_written_is_read(learned):
    given = {ROWS: {"cpu": 2.0, "reference": 1.0}, DENSE: {"sdpa": 0.5}}
    known = preference.read(learned(given))
    assert (
        known.plain()
        == Table("a machine", versions(), tuple(Measured(*each) for each in given.items())).plain()
    )
    assert json.loads(json.dumps(known.plain())) == known.plain()
    assert replace(known, kinds=()).nearest(ROWS) is None


def test_a_gpu_has_a_file_of_its_own(cache, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (a part)")
    assert preference.path(torch.device("cuda", 0)) == cache / "kernels" / "NVIDIA-H200-a-part.json"
    assert preference.path(CPU) != preference.path(torch.device("cuda", 0))
