import pytest
import torch
from scipy import stats

from crisp_attention import Method, RandomK, TopK, Window
from crisp_attention.methods.hashing import head_seeds, mix
from crisp_attention.methods.pairs import causal_mask
from crisp_attention.methods.rows import Rows
from tests.cases import selected

FULL = torch.ones(1, 1, 32, 32, dtype=torch.bool)
CAUSAL = causal_mask(32, 32, torch.device("cpu"))


def keep(
    seed: int | torch.Tensor, *, sparsity: float = 0.75, valid: torch.Tensor = FULL, scores: int = 0
) -> torch.Tensor:
    """Kept pairs of 2 examples with 4 heads; `scores` seeds the scores."""
    rows = torch.randn(2, 4, *valid.shape[-2:], generator=torch.Generator().manual_seed(scores))
    return selected(RandomK(sparsity), rows, valid, head_seeds(torch.as_tensor(seed), 4))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.95])
@pytest.mark.parametrize("valid", [FULL, CAUSAL], ids=["full", "causal"])
def test_keeps_as_many_of_the_visible_keys_as_topk(sparsity: float, valid: torch.Tensor) -> None:
    kept = keep(1, sparsity=sparsity, valid=valid)
    topk = selected(TopK(sparsity), torch.randn(2, 4, 32, 32), valid)
    assert kept.sum(-1).equal(topk.sum(-1))
    assert not (kept & ~valid).any()


def test_every_key_is_as_likely_as_any_other() -> None:
    times = sum(keep(seed)[0].sum(dim=(0, 1)) for seed in range(100))
    expected = 100 * 4 * 32 * 8 / 32
    # without replacement the counts vary a little less than chi-square says, so only the upper end tells
    assert stats.chi2.sf(((times - expected) ** 2 / expected).sum().item(), df=31) > 1e-3
    assert (times / expected - 1).abs().max() < 0.1


def test_two_keys_are_kept_together_as_often_as_chance_says() -> None:
    kept = torch.cat([keep(seed)[0].flatten(0, 1) for seed in range(100)]).double()
    together = (kept.T @ kept / len(kept)).fill_diagonal_(torch.nan)
    chance = 8 / 32 * 7 / 31
    assert (together[~together.isnan()] / chance - 1).abs().max() < 0.2


def test_other_seeds_heads_and_rows_draw_other_keys() -> None:
    one, two = keep(1), keep(2)
    agreements = [
        (one, two),
        (one[:, :-1], one[:, 1:]),  # heads
        (one[:, :, :-1], one[:, :, 1:]),  # queries
    ]
    for a, b in agreements:
        assert 0.2 < (a & b).sum() / a.sum() < 0.3  # a quarter by chance


def test_neighbouring_rows_of_a_window_agree_by_chance_only() -> None:
    seeds = head_seeds(torch.arange(300)[:, None, None, None], 1)
    rows = Rows.of_scores(torch.zeros(300, 1, 32, 32), FULL, seed=seeds)
    kept = RandomK(0.5).select(rows, Window(9).visible(rows))[:, 0]
    same_key = kept[:, 10, 7:15] & kept[:, 11, 7:15]
    same_place = kept[:, 10, 6:15] & kept[:, 11, 7:16]
    assert same_key.double().mean() == pytest.approx((5 / 9) ** 2, abs=0.04)
    assert same_place.double().mean() == pytest.approx((5 / 9) ** 2, abs=0.04)


def test_scores_do_not_matter() -> None:
    assert keep(1, scores=0).equal(keep(1, scores=1))


def test_one_seed_gives_every_example_the_same_draw_and_a_seed_each_gives_each_its_own() -> None:
    shared, own = keep(7), keep(torch.tensor([7, 8])[:, None, None, None])
    assert shared[0].equal(shared[1])
    assert own[0].equal(shared[0])
    assert own[1].equal(keep(8)[0])


def test_decoding_row_by_row_draws_what_the_whole_causal_matrix_drew() -> None:
    method = Method(Window(9), RandomK(0.5))

    def kept(valid: torch.Tensor) -> torch.Tensor:
        seed = head_seeds(torch.tensor(3), 2)
        rows = Rows.of_scores(torch.zeros(1, 2, *valid.shape[-2:]), valid, seed=seed)
        return method.rule.select(rows, method.layout.visible(rows))

    whole = kept(CAUSAL)
    for i in (0, 5, 31):
        step = torch.ones(1, 1, 1, i + 1, dtype=torch.bool)
        assert kept(step)[..., 0, :].equal(whole[..., i, : i + 1])


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="RandomK needs a seed, got None"):
        selected(RandomK(0.5), torch.zeros(1, 1, 2, 2))


def test_the_hash_is_one_to_one_and_stays_in_32_bits() -> None:
    hashed = mix(torch.cat([torch.arange(2**16), 2**32 - 1 - torch.arange(2**16)]))
    assert len(hashed.unique()) == 2**17
    assert hashed.min() >= 0
    assert hashed.max() < 2**32
