import pytest
import torch

from crisp_attention import Full, Window
from tests.cases import shown


def rows(*lines: str) -> torch.Tensor:
    """A (1, 1, L, S) matrix drawn with `x` for a pair that is in and `.` for one that is not."""
    return torch.tensor([[c == "x" for c in line] for line in lines])[None, None]


CASES = {
    "a band of three": (
        Window(3),
        rows("xxxxx", "xxxxx", "xxxxx", "xxxxx", "xxxxx"),
        rows("xx...", "xxx..", ".xxx.", "..xxx", "...xx"),
    ),
    "a band of one": (Window(1), rows("xxx", "xxx", "xxx"), rows("x..", ".x.", "..x")),
    "a band wider than the row": (Window(9), rows("xx", "xx"), rows("xx", "xx")),
    "a global token is a full row and a full column": (
        Window(1, global_tokens=1),
        rows("xxxx", "xxxx", "xxxx", "xxxx"),
        rows("xxxx", "xx..", "x.x.", "x..x"),
    ),
    "global tokens see no future": (
        Window(1, global_tokens=2),
        rows("x...", "xx..", "xxx.", "xxxx"),
        rows("x...", "xx..", "xxx.", "xx.x"),
    ),
    "causal cuts the band": (
        Window(3),
        rows("x...", "xx..", "xxx.", "xxxx"),
        rows("x...", "xx..", ".xx.", "..xx"),
    ),
    "fewer queries than keys: the last query is the last key": (
        Window(3),
        rows("xxxxx", "xxxxx"),
        rows("..xxx", "...xx"),
    ),
    "unused slots of a static cache follow": (
        Window(3),
        rows("xxx....", "xxxx..."),
        rows(".xx....", "..xx..."),
    ),
    "left padding moves neither band nor global token": (
        Window(3, global_tokens=1),
        rows("....", "....", "..x.", "..xx", "..xx")[..., 1:, :],
        rows("....", "..x.", "..xx", "..xx"),
    ),
    "right padding is not seen": (
        Window(3),
        rows("xxx..", "xxx..", "xxx..", "xxx..", "xxx.."),
        rows("xx...", "xxx..", ".xx..", ".xx..", ".xx.."),
    ),
    "positions count valid keys, so a hole is stepped over": (
        Window(3),
        rows("x.xx", "x.xx", "x.xx", "x.xx"),
        rows("x.x.", "x.x.", "x.xx", "..xx"),
    ),
    "every second token": (
        Window(3, dilation=2),
        rows("xxxxxx", "xxxxxx", "xxxxxx", "xxxxxx", "xxxxxx", "xxxxxx"),
        rows("x.x...", ".x.x..", "x.x.x.", ".x.x.x", "..x.x.", "...x.x"),
    ),
    "a wider band of every second token, causal": (
        Window(5, dilation=2),
        rows("x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx"),
        rows("x.....", ".x....", "x.x...", ".x.x..", "x.x.x.", ".x.x.x"),
    ),
    "global tokens are seen at any distance": (
        Window(3, global_tokens=1, dilation=3),
        rows("xxxxx", "xxxxx", "xxxxx", "xxxxx", "xxxxx"),
        rows("xxxxx", "xx..x", "x.x..", "x..x.", "xx..x"),
    ),
    "steps count valid keys, so padding and holes are stepped over": (
        Window(3, dilation=2),
        rows(".xx.xx", ".xx.xx"),
        rows(".x..x.", "..x..x"),
    ),
    "a step longer than the row leaves the own key": (
        Window(9, dilation=9),
        rows("xxx", "xxx", "xxx"),
        rows("x..", ".x.", "..x"),
    ),
    "a query before every valid key is not global": (
        Window(1),
        rows("..xx", "..xx", "..xx", "..xx"),
        rows("....", "....", "..x.", "...x"),
    ),
}


@pytest.mark.parametrize(("layout", "valid", "visible"), CASES.values(), ids=CASES.keys())
def test_window(layout: Window, valid: torch.Tensor, visible: torch.Tensor) -> None:
    assert shown(layout, valid)[0, 0].int().tolist() == visible[0, 0].int().tolist()


def test_each_example_of_a_batch_has_its_own_positions() -> None:
    a, b = rows("xx..", "xx..", "xx..", "xx.."), rows("..xx", "..xx", "..xx", "..xx")
    together = shown(Window(1, 1), torch.cat([a, b]))
    assert together.equal(torch.cat([shown(Window(1, 1), a), shown(Window(1, 1), b)]))


def test_full_sees_what_is_valid() -> None:
    valid = rows("x.x", "...")
    assert shown(Full(), valid).equal(valid)


@pytest.mark.parametrize("width", [0, -3, 4, 2.5, "3", True])
def test_a_width_without_a_middle_is_refused(width: object) -> None:
    with pytest.raises(ValueError, match=f"width must be an odd whole number of at least 1, got {width!r}"):
        Window(width)


@pytest.mark.parametrize("dilation", [0, -1, 1.5, "2", True])
def test_a_wrong_dilation_is_refused(dilation: object) -> None:
    with pytest.raises(ValueError, match=f"dilation must be a whole number of at least 1, got {dilation!r}"):
        Window(3, dilation=dilation)


@pytest.mark.parametrize("tokens", [-1, 1.5, "1", True])
def test_a_wrong_number_of_global_tokens_is_refused(tokens: object) -> None:
    with pytest.raises(
        ValueError, match=f"global_tokens must be a whole number of at least 0, got {tokens!r}"
    ):
        Window(3, tokens)
