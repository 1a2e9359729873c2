from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.hashing import drawn
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.layouts.window import Window
from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.sight import Draw, Sight


@dataclass(frozen=True)
class BigBird(Layout):
    """A window, global tokens and random blocks of keys (BigBird, arXiv 2007.14062, section 2).

    Window and global tokens are those of `Window`. Blocks are runs of `block_size` valid keys of the row; the
    queries of one block draw the same ones, among all that the row has: under a causal mask those up to their own.
    The draw is a hash of seed, head and the numbers of the two blocks, so padding, batch-mates and a key/value
    cache do not change it.

    Parameters
    ----------
    width
        Keys in the window, an odd number: width // 2 on each side of the query's own token.
    global_tokens
        How many tokens at the beginning are global.
    random_blocks
        How many blocks of keys each block of queries draws, or all of a shorter row.
    block_size
        Keys in a block; with 1, by default, every query draws keys of its own.
    seed
        Of the draw.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query = key = torch.ones(1, 1, 12, 2)
    >>> layout = crisp.BigBird(width=1, global_tokens=0, random_blocks=2, block_size=3)
    >>> weights = crisp.attention(query, key, torch.eye(12)[None, None], layout)
    >>> (weights > 0).sum(-1)  # two of four blocks of three keys, and the own key where it is in neither
    tensor([[[7, 7, 7, 6, 6, 6, 7, 7, 7, 7, 7, 7]]])
    """

    width: int = 3
    global_tokens: int = 1
    random_blocks: int = 1
    block_size: int = 1
    seed: int = 0

    name: ClassVar[str] = "bigbird"
    uses_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self._window  # which checks its options
        check_whole("random_blocks", self.random_blocks, 0)
        check_whole("block_size", self.block_size, 1)
        check_whole("seed", self.seed, 0)

    def shows_everything(self, keys: int | None = None) -> bool:
        if keys is None:
            return False
        return self.random_blocks * self.block_size >= keys or self._window.shows_everything(keys)

    def visible(self, rows: Rows) -> Tensor:
        keys, size = rows.valid.sum(dim=-1, keepdim=True), self.block_size
        # one block more than a row could fill, for the same reason as in `grouped`
        block = torch.arange(-(-rows.valid.shape[-1] // size) + 1, device=keys.device)
        draw = drawn(rows.head_seeds(self.seed), (rows.query_positions - 1) // size, block)
        present = (block * size < keys).expand_as(draw)
        count = present.sum(dim=-1, keepdim=True).clamp(max=self.random_blocks)
        random = keep_largest(draw, present, count)
        of_key = (rows.key_positions - 1).clamp(min=0) // size
        random = random.gather(-1, of_key.expand(*random.shape[:-1], -1))
        return self._window.visible(rows) | (rows.valid & random)

    def sight(self, rows: Rows) -> Sight:
        draw = Draw(rows.head_seeds(self.seed), blocks=self.random_blocks, size=self.block_size)
        return Sight(self.width // 2, self.global_tokens, draw=draw)

    @property
    def _window(self) -> Window:
        return Window(self.width, self.global_tokens)
