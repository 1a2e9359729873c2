import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import (
    LSH,
    BigBird,
    BlockTopK,
    Entmax,
    Method,
    RandomK,
    RandomPairs,
    Strided,
    Threshold,
    TopK,
    TopP,
    Window,
)
from crisp_attention.methods.spec import parse
from tests.strategies import METHODS


@given(METHODS)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_parse_reads_the_spec_that_a_method_gives_itself(method: Method) -> None:
    assert parse(method.spec) == method


@given(METHODS)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_options_may_be_given_beside_the_names(method: Method) -> None:
    parts = [{k: v for k, v in part.items() if k != "name"} for part in method.to_dict().values()]
    shared = set(parts[0]) & set(parts[1])
    beside = {k: v for part in parts for k, v in part.items() if k not in shared}
    both = zip(("layout", "rule"), parts, strict=True)
    written = {
        where: "".join(f":{k}={part[k]}" for k in shared if part[k] is not None) for where, part in both
    }
    spec = f"{method.layout.name}{written['layout']}+{method.rule.name}{written['rule']}"
    if shared and method.rule.sparsity is None:
        beside["keep"] = method.rule.keep
    assert parse(spec, **beside) == method


PARSED = {
    "dense": Method(),
    "full": Method(),
    "topk:sparsity=0.5": Method(rule=TopK(0.5)),
    "topk:sparsity=5e-1:min_keep=4": Method(rule=TopK(0.5, min_keep=4)),
    "topk:keep=16": Method(rule=TopK(keep=16)),
    "random:keep=3": Method(rule=RandomK(keep=3)),
    "topp:mass=1": Method(rule=TopP(1.0)),
    "threshold:epsilon=.25": Method(rule=Threshold(0.25)),
    "entmax": Method(rule=Entmax(1.5)),
    "entmax:alpha=2": Method(rule=Entmax(2)),
    "entmax:alpha=learned": Method(rule=Entmax("learned")),
    "window:width=9:dilation=2": Method(Window(9, dilation=2)),
    "window:width=9:global_tokens=1+topk:sparsity=0.5": Method(Window(9, 1), TopK(0.5)),
    "topk+window:width=9": Method(Window(9), TopK()),
    "block_topk:block_size=32:sink_blocks=1:local_blocks=2": Method(BlockTopK(0.8, 32, 1, 2)),
    "bigbird:width=5:random_blocks=2+entmax": Method(BigBird(5, random_blocks=2), Entmax()),
    "strided:stride=3:local=2": Method(Strided(3, 2)),
    "lsh:buckets=4:seed=7+topk:sparsity=0.5": Method(LSH(4, seed=7), TopK(0.5)),
    "random_pairs:sparsity=0.9": Method(RandomPairs(0.9)),
    "block_topk:sparsity=0.5+topk:sparsity=0.25": Method(BlockTopK(0.5), TopK(0.25)),
}


@pytest.mark.parametrize(("spec", "method"), PARSED.items(), ids=PARSED)
def test_parse(spec: str, method: Method) -> None:
    assert parse(spec) == method


SHOWN = {
    "topk:sparsity=0.8": TopK(),
    "topk:keep=16": TopK(keep=16),
    "topk:sparsity=0.5:min_keep=2": TopK(0.5, 2),
    "topp:mass=0.9": TopP(0.9),
    "entmax:alpha=1.5": Entmax(),
    "entmax:alpha=learned": Entmax("learned"),
}


@pytest.mark.parametrize(("spec", "rule"), SHOWN.items(), ids=SHOWN)
def test_a_spec_shows_the_first_option_and_what_is_not_a_default(spec: str, rule: TopK) -> None:
    assert Method(rule=rule).spec == spec
    assert Method(Window(9), rule).spec == f"window:width=9+{spec}"


def test_an_option_beside_the_spec_goes_to_the_part_that_has_it() -> None:
    assert parse("window+topk", width=9, sparsity=0.5) == Method(Window(9), TopK(0.5))
    assert parse("block_topk+entmax", sparsity=0.5, alpha=2) == Method(BlockTopK(0.5), Entmax(2))
    assert parse("window:width=9+topk", sparsity=None) == Method(Window(9), TopK())


REFUSED = [
    ("top_k", {}, r"unknown method 'top_k'; did you mean topk"),
    ("", {}, r"unknown method ''"),
    ("window+", {"width": 3}, r"unknown method ''"),
    ("TopK", {}, r"unknown method 'TopK'"),
    ("topk sparsity=0.5", {}, r"unknown method 'topk sparsity=0\.5'"),
    ("topk+random", {}, r"'topk\+random' names two rules"),
    ("topk+topk", {}, r"'topk\+topk' names two rules"),
    ("full+window", {"width": 3}, r"'full\+window' names two layouts"),
    ("topk", {"width": 9}, r"'topk' has no option width"),
    ("topk:width=9", {}, r"'topk' has no option width; it has sparsity, min_keep, keep"),
    ("dense", {"sparsity": 0.5}, r"'dense' has no option sparsity"),
    ("dense:sparsity=0.5", {}, r"'dense' has no option sparsity; it has temperature"),
    ("window", {}, r"'window' needs the option width"),
    ("topp", {}, r"'topp' needs the option mass"),
    ("threshold", {}, r"'threshold' needs the option epsilon"),
    ("window", {"width": 4}, r"width must be an odd whole number of at least 1, got 4"),
    ("window:width=4", {}, r"width must be an odd whole number of at least 1, got 4"),
    ("topk", {"sparsity": "much"}, r"'topk': sparsity must be a number in \[0, 1\), got 'much'"),
    ("topk:sparsity=much", {}, r"'topk': sparsity must be a number in \[0, 1\), got 'much'"),
    ("topk:sparsity=nan", {}, r"sparsity must be in \[0, 1\), got nan"),
    ("topk", {"sparsity": 1}, r"sparsity must be in \[0, 1\), got 1"),
    ("topk:keep=4", {"sparsity": 0.5}, r"keep=4 cannot be combined with sparsity"),
    ("topk:", {}, r"'topk': expected key=value, such as topk:sparsity=0\.5, got ''"),
    ("topk:0.5", {}, r"'topk': expected key=value, such as .*, got '0\.5'"),
    ("topk:sparsity=", {}, r"'topk': expected key=value, such as .*, got 'sparsity='"),
    ("topk:=0.5", {}, r"'topk': expected key=value, such as .*, got '=0\.5'"),
    ("topk:sparsity=0.5:sparsity=0.6", {}, r"'topk:sparsity=0\.5:sparsity=0\.6' sets sparsity twice"),
    ("topk:name=random", {}, r"sets name twice"),
    ("topk:sparsity=0.5", {"sparsity": 0.6}, r"already sets sparsity; it cannot be 0\.6 as well"),
    (
        "block_topk+topk",
        {"sparsity": 0.5},
        r"both parts of 'block_topk\+topk' have a sparsity: .* for example .*:sparsity=0\.5",
    ),
    ("entmax:alpha=learnt", {}, r"alpha must be a number of at least 1, or \"learned\", got 'learnt'"),
]


@pytest.mark.parametrize(("spec", "options", "message"), REFUSED)
def test_parse_refuses(spec: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(spec, **options)


@given(st.text(st.sampled_from("topk+window:=0.59 e-"), max_size=20))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_whatever_is_written_is_a_method_or_a_value_error(spec: str) -> None:
    try:
        method = parse(spec)
    except ValueError:
        return
    assert parse(method.spec) == method
