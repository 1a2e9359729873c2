"""Models written by hand that call torch's attention, and what must not be left on them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LENGTH = 16, 2, 9


class Attention(nn.Module):
    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.n_head, self.causal = HEADS, causal

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(states).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-2, -3)
        found = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self.causal and mask is None
        )
        return self.out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = Attention(causal)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        states = states + self.attention(self.norms[0](states), mask)
        return states + self.mlp(self.norms[1](states))


class GPT(nn.Module):
    """A decoder, or an encoder, written by hand."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(32, WIDTH), nn.Embedding(32, WIDTH)
        self.blocks = nn.ModuleList(Block(causal) for _ in range(3))
        self.head = nn.Linear(WIDTH, 32)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        states = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            states = block(states, mask)
        return self.head(states)


def built(causal: bool = True) -> GPT:
    torch.manual_seed(0)
    model = GPT(causal)
    for block in model.blocks:
        nn.init.normal_(block.attention.qkv.weight, std=0.5)
    return model.eval()


IDS = torch.randint(0, 32, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def nothing_is_left(model: nn.Module) -> bool:
    marks = [name for module in model.modules() for name in vars(module) if "crisp" in name]
    hooks = [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
        if hook.__module__.startswith("crisp_attention")
    ]
    return not marks and not hooks


class Hidden(nn.Module):
    """An attention whose function is passed to it."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.attend, self.qkv = attend, nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        parts = self.qkv(states).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-2, -3)
        return self.attend(*parts).transpose(1, 2).flatten(2)
