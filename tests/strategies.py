"""Methods for hypothesis to draw, with every option that a rule or a layout has."""

from dataclasses import replace

from hypothesis import strategies as st

from crisp_attention import (
    LSH,
    BigBird,
    BlockTopK,
    Dense,
    Entmax,
    Full,
    Method,
    NofM,
    PerHead,
    RandomK,
    RandomPairs,
    Strided,
    Threshold,
    TopK,
    TopP,
    Window,
)

SPARSITIES = st.floats(0, 1, exclude_max=True)
ALPHAS = st.floats(1.01, 10) | st.sampled_from([1, 1.5, 2, "learned"])


def shares(rule: type[TopK] | type[RandomK]) -> st.SearchStrategy[TopK | RandomK]:
    return st.builds(rule, SPARSITIES, st.integers(1, 100)) | st.builds(rule, keep=st.integers(1, 10**6))


RULES = st.one_of(
    st.just(Dense()),
    shares(TopK),
    shares(RandomK),
    st.builds(TopP, st.floats(0, 1, exclude_min=True)),
    st.builds(Threshold, st.floats(0, 1)),
    st.builds(NofM, st.integers(1, 8), st.integers(8, 32)),
    st.builds(Entmax, ALPHAS),
)
ODD = st.integers(0, 500).map(lambda n: 2 * n + 1)
SEEDS = st.integers(0, 2**70)
# what these show of a row depends on its length alone
COUNTING_LAYOUTS = st.one_of(
    st.just(Full()),
    st.builds(Window, ODD, st.integers(0, 64), st.integers(1, 8)),
    st.builds(BlockTopK, SPARSITIES, st.integers(1, 256), st.integers(0, 4), st.integers(1, 4)),
    st.builds(Strided, st.integers(1, 64), st.none() | st.integers(1, 64)),
    st.builds(RandomPairs, SPARSITIES, SEEDS),
)
LAYOUTS = st.one_of(
    COUNTING_LAYOUTS,
    st.builds(BigBird, ODD, st.integers(0, 64), st.integers(0, 4), st.integers(1, 256), SEEDS),
    st.builds(LSH, st.just(1) | st.integers(1, 32).map(lambda n: 2 * n), st.integers(1, 4), SEEDS),
)
TEMPERATURES = st.just(1) | st.floats(0.01, 100) | st.just("learned")
METHODS = st.builds(
    lambda layout, rule, temperature: Method(layout, replace(rule, temperature=temperature)),
    LAYOUTS,
    RULES,
    TEMPERATURES,
)
PER_HEAD = st.lists(METHODS, min_size=2, max_size=4, unique=True).map(lambda each: PerHead(tuple(each)))
