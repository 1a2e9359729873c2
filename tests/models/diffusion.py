"""Tiny, random models of diffusers, one of each generation of its attention, and what they are called with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TEXT = 5


@dataclass(frozen=True)
class Family:
    """How to build a model, its inputs for some examples, and the tokens of one of its attention calls.

    text: where the tokens of the text stand among them: None, "first" or "last".
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    tokens: int
    text: str | None = None


def normal(batch: int, *sizes: int, seed: int = 0) -> Tensor:
    """The same examples whatever their number."""
    return torch.randn(4, *sizes, generator=torch.Generator().manual_seed(seed))[:batch]


def dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip


def pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        caption_channels=12, cross_attention_dim=16, use_additional_conditions=False, norm_num_groups=2,
    )  # fmt: skip


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=8, ffn_dim=16, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip


def cogvideox() -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=12, num_layers=2, sample_width=8, sample_height=8, sample_frames=5, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=TEXT,
    )  # fmt: skip


def _time(batch: int) -> Tensor:
    return torch.full((batch,), 3)


FAMILIES = {
    "DiT": Family(
        dit,
        lambda n: {"hidden_states": normal(n, 4, 8, 8), "timestep": _time(n), "class_labels": torch.arange(n)},
        16,
    ),
    "PixArt": Family(
        pixart,
        lambda n: {
            "hidden_states": normal(n, 4, 8, 8),
            "encoder_hidden_states": normal(n, TEXT, 12, seed=1),
            "timestep": _time(n),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        16,
    ),
    "SD3": Family(
        sd3,
        lambda n: {
            "hidden_states": normal(n, 4, 8, 8),
            "encoder_hidden_states": normal(n, TEXT, 12, seed=1),
            "pooled_projections": normal(n, 6, seed=2),
            "timestep": _time(n),
        },
        16 + TEXT,
        "last",
    ),
    "Flux": Family(
        flux,
        lambda n: {
            "hidden_states": normal(n, 16, 4),
            "encoder_hidden_states": normal(n, TEXT, 12, seed=1),
            "pooled_projections": normal(n, 6, seed=2),
            "timestep": _time(n) / 10,
            "img_ids": torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], dim=1),
            "txt_ids": torch.zeros(TEXT, 3),
        },
        16 + TEXT,
        "first",
    ),
    "Wan": Family(
        wan,
        lambda n: {
            "hidden_states": normal(n, 4, 1, 8, 8),
            "encoder_hidden_states": normal(n, TEXT, 12, seed=1),
            "timestep": _time(n),
        },
        16,
    ),
    "CogVideoX": Family(
        cogvideox,
        lambda n: {
            "hidden_states": normal(n, 2, 4, 8, 8),
            "encoder_hidden_states": normal(n, TEXT, 12, seed=1),
            "timestep": _time(n),
        },
        32 + TEXT,
        "first",
    ),
}  # fmt: skip


def built(name: str) -> nn.Module:
    """A model with large weights, so that what is attended to matters."""
    torch.manual_seed(0)
    model = FAMILIES[name].build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def run(model: nn.Module, name: str, batch: int = 2, **more: Any) -> Tensor:
    """What the model computes of its inputs."""
    return model(**FAMILIES[name].inputs(batch), return_dict=False, **more)[0]
