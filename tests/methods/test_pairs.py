import pytest
import torch

from crisp_attention.methods import pairs


def rows(*lines: str) -> torch.Tensor:
    """A (1, 1, L, S) mask drawn with `x` for a valid pair and `.` for none."""
    return torch.tensor([[c == "x" for c in line] for line in lines])[None, None]


def test_no_mask_says_nothing() -> None:
    assert pairs.split_mask(None) == (None, None)


def test_a_boolean_mask_is_the_valid_pairs_without_bias() -> None:
    mask = rows("x.x")
    valid, bias = pairs.split_mask(mask)
    assert valid is mask
    assert bias is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_usual_way_to_forbid_a_pair_is_understood(dtype: torch.dtype) -> None:
    forbidden = [torch.finfo(dtype).min, -torch.inf, -1e4]
    mask = torch.tensor([*forbidden, -5000.0, 0.0, 2.5]).to(dtype)[None, None, None]
    valid, bias = pairs.split_mask(mask)
    assert valid.flatten().tolist() == [False, False, False, True, True, True]
    assert bias.flatten().tolist() == [0, 0, 0, mask[..., 3].item(), 0, 2.5]


def test_nan_in_an_additive_mask_does_not_forbid() -> None:
    valid, bias = pairs.split_mask(torch.full((1, 1, 1, 1), torch.nan))
    assert valid.all()
    assert bias.isnan().all()


def test_an_integer_mask_is_refused_by_dtype() -> None:
    with pytest.raises(TypeError, match=r"mask must be bool .* or floating point .*, got torch\.int64"):
        pairs.split_mask(torch.ones(1, 1, 2, 2, dtype=torch.int64))


def test_causal_is_aligned_at_the_upper_left() -> None:
    wanted = rows("x...", "xx..")
    assert pairs.causal_mask(2, 4, wanted.device).equal(wanted)


def test_a_query_stands_at_its_own_token_whatever_the_padding() -> None:
    bare = rows("x..", "xx.", "xxx")
    left = rows(".....", ".....", "..x..", "..xx.", "..xxx")
    right = rows("x....", "xx...", "xxx..", "xxx..", "xxx..")
    assert pairs.query_ranks(bare).flatten().tolist() == [1, 2, 3]
    assert pairs.query_ranks(left)[..., 2:, :].flatten().tolist() == [1, 2, 3]
    assert pairs.query_ranks(right)[..., :3, :].flatten().tolist() == [1, 2, 3]


def test_decoding_places_the_last_query_at_the_last_key_or_at_the_end_of_a_static_cache() -> None:
    assert pairs.query_ranks(rows("xxx.", "xxxx")).flatten().tolist() == [3, 4]
    assert pairs.query_ranks(rows("xxx.....", "xxxx....")).flatten().tolist() == [3, 4]


def test_padded_queries_are_told_from_real_ones() -> None:
    assert pairs.valid_queries(rows("xx.", "xx.", "xx.")).flatten().tolist() == [True, True, False]
    assert pairs.valid_queries(rows("...", ".x.", ".xx")).flatten().tolist() == [False, True, True]
    assert pairs.valid_queries(rows("xx.")).flatten().tolist() == [True]  # decoding: every query is real


def test_padded_queries_are_told_from_real_ones_where_keys_come_before_them() -> None:
    def real(*lines: str) -> list[bool]:
        return pairs.valid_queries(rows(*lines)).flatten().tolist()

    assert real(*["xxxx.."] * 4) == [True, True, False, False]  # an encoder's prefix
    assert real("xxx...", "xxxx..", "xxxx..", "xxxx..") == [True, True, False, False]  # a decoder's
    assert real("xx....", "xx.x..", "xx.xx.") == [False, True, True]  # padded on the left
    assert real("xxx.....", "xxxx....", "xxxx....") == [True, True, False]  # in a static cache
