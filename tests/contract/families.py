"""Tiny randomly initialised Transformers model families for the contract tests: nothing is downloaded."""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel

VOCAB = 64
PAD = 1
FIRST_TOKEN = 5  # real tokens are drawn from [FIRST_TOKEN, VOCAB), clear of pad and of all special tokens
AUDIO_CONVS = ((4, 2), (3, 2))  # (kernel, stride) of each feature convolution of the waveform models


@dataclass(frozen=True)
class Family:
    """One model family: how to build a tiny member and what its batches may look like."""

    name: str
    kind: str  # "encoder" (bidirectional text), "decoder" (causal text), "vision", "audio" or "seq2seq"
    config_class: str
    model_class: str
    settings: dict[str, Any] = field(repr=False, hash=False)
    min_transformers: str = "5.5"  # the first version that lets it switch to a registered attention
    left_padding: bool = False  # dense eager attention gives the same result under left padding
    own_positions: bool = False  # counts positions past left padding itself, so it is given no position_ids

    def build(self) -> PreTrainedModel:
        """A tiny model in eval mode, always with the same weights; the global seed is left alone.

        Every parameter gets noise on top of its initial value: attention becomes far from uniform, and tables
        that start at zero (relative position biases, sinks) matter to the result.
        """
        return copy.deepcopy(_built(self))


@cache
def _built(family: Family) -> PreTrainedModel:
    config = getattr(transformers, family.config_class)(**family.settings)
    with warnings.catch_warnings():  # older DeBERTa modules script functions when imported
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        model_class = getattr(transformers, family.model_class)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = model_class(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def _text(
    name: str, kind: str, stem: str, *, since: str = "5.5", own_positions: bool = False, **settings: Any
) -> Family:
    settings = _TOKENS | settings
    return Family(
        name,
        kind,
        f"{stem}Config",
        f"{stem}Model",
        settings,
        min_transformers=since,
        left_padding=True,
        own_positions=own_positions,
    )


def _vision(name: str, stem: str, *, since: str = "5.5", **settings: Any) -> Family:
    return Family(name, "vision", f"{stem}Config", f"{stem}Model", settings, min_transformers=since)


_TOKENS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "max_position_embeddings": 256,
}
_BODY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_GROUPED: dict[str, Any] = _BODY | {"num_key_value_heads": 2}
_SLIDING: dict[str, Any] = _GROUPED | {
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_channels": 3}
_SPEECH: dict[str, Any] = _BODY | {
    "feat_extract_norm": "layer",  # the variants that take an attention mask
    "conv_dim": [8] * len(AUDIO_CONVS),
    "conv_kernel": [kernel for kernel, _ in AUDIO_CONVS],
    "conv_stride": [stride for _, stride in AUDIO_CONVS],
    "layerdrop": 0.0,
    "apply_spec_augment": False,  # it refuses short inputs in training
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
_BART: dict[str, Any] = _TOKENS | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": PAD,
    "decoder_start_token_id": 0,
    "initializer_factor": 0.5,  # scores are not scaled: this keeps them moderate
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_WHISPER: dict[str, Any] = {
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 256,
    "decoder_start_token_id": 3,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_DISTILBERT: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
_OPT: dict[str, Any] = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
}
_MODERNBERT: dict[str, Any] = _BODY | {"local_attention": 6, "global_attn_every_n_layers": 2}

FAMILIES: tuple[Family, ...] = (
    _text("distilbert", "encoder", "DistilBert", **_DISTILBERT),
    _text("bert", "encoder", "Bert", **_BODY),
    _text("roberta", "encoder", "Roberta", own_positions=True, **_BODY),
    _text("xlm_roberta", "encoder", "XLMRoberta", own_positions=True, **_BODY),
    _text("electra", "encoder", "Electra", embedding_size=16, **_BODY),
    _text("albert", "encoder", "Albert", embedding_size=16, **_BODY),
    _text("modernbert", "encoder", "ModernBert", since="5.7", cls_token_id=3, sep_token_id=4, **_MODERNBERT),
    _text("esm", "encoder", "Esm", own_positions=True, mask_token_id=3, token_dropout=True, **_BODY),
    _text("eurobert", "encoder", "EuroBert", **_GROUPED),
    _text("gpt2", "decoder", "GPT2", **_GPT2),
    _text("opt", "decoder", "OPT", own_positions=True, ffn_dim=48, **_OPT),
    _text("gpt_neox", "decoder", "GPTNeoX", **_BODY),
    _text("llama", "decoder", "Llama", **_GROUPED),
    _text("qwen2", "decoder", "Qwen2", **_GROUPED),
    _text("qwen3", "decoder", "Qwen3", head_dim=8, **_GROUPED),
    _text("mistral", "decoder", "Mistral", sliding_window=4, **_GROUPED),
    _text("phi3", "decoder", "Phi3", **_GROUPED),
    _text("gemma2", "decoder", "Gemma2", query_pre_attn_scalar=8, attn_logit_softcapping=2.0, **_SLIDING),
    _text("gemma3_text", "decoder", "Gemma3Text", query_pre_attn_scalar=8, **_SLIDING),
    _text("gpt_oss", "decoder", "GptOss", num_local_experts=4, num_experts_per_tok=2, **_SLIDING),
    _text("mixtral", "decoder", "Mixtral", num_local_experts=4, **_GROUPED),
    _text("granite", "decoder", "Granite", attention_multiplier=0.25, **_GROUPED),
    _text("olmo2", "decoder", "Olmo2", **_GROUPED),
    _text("stablelm", "decoder", "StableLm", **_GROUPED),
    _text("cohere", "decoder", "Cohere", **_GROUPED),
    _text("clip_text", "decoder", "CLIPText", **_BODY),
    _vision("vit", "ViT", **_BODY, **_IMAGE),
    _vision("deit", "DeiT", **_BODY, **_IMAGE),
    _vision("dinov2", "Dinov2", **_BODY, **_IMAGE),
    _vision("dinov3_vit", "DINOv3ViT", num_register_tokens=2, **_BODY, **_IMAGE),
    _vision("beit", "Beit", since="5.9", use_relative_position_bias=True, **_BODY, **_IMAGE),
    _vision("swin", "Swin", since="5.9", window_size=4, **_SWIN),
    _vision("clip_vision", "CLIPVision", **_BODY, **_IMAGE),
    _vision("siglip_vision", "SiglipVision", **_BODY, **_IMAGE),
    Family("wav2vec2", "audio", "Wav2Vec2Config", "Wav2Vec2Model", _SPEECH),
    Family("hubert", "audio", "HubertConfig", "HubertModel", _SPEECH),
    Family("whisper", "audio", "WhisperConfig", "WhisperModel", _BART | _WHISPER),
    Family("bart", "seq2seq", "BartConfig", "BartModel", _BART),
    Family("mbart", "seq2seq", "MBartConfig", "MBartModel", _BART),
    Family("pegasus", "seq2seq", "PegasusConfig", "PegasusModel", _BART),
    Family("t5", "seq2seq", "T5Config", "T5Model", _T5, min_transformers="5.20", left_padding=True),
)

# Families whose attention never goes through the interface: they must be refused, loudly.
UNSUPPORTED: tuple[Family, ...] = (
    _text(
        "deberta_v2", "encoder", "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], **_BODY
    ),
    _text("mpnet", "encoder", "MPNet", own_positions=True, **_BODY),
    _text("longformer", "encoder", "Longformer", own_positions=True, attention_window=[4, 4], **_BODY),
)


def available() -> list[Family]:
    """The families that the installed transformers has, and whose attention it computes by its interface in full.

    Some versions load Gemma 2 with SDPA, which has no softcap, and drop it: no attention equals another there.
    """
    installed = Version(Version(transformers.__version__).base_version)  # 5.17.0.dev0 counts as 5.17.0
    return [
        family
        for family in FAMILIES
        if installed >= Version(family.min_transformers)
        and hasattr(transformers, family.config_class)
        and not (
            "attn_logit_softcapping" in family.settings
            and getattr(transformers, family.model_class)._supports_sdpa
        )
    ]


def inputs(
    family: Family,
    model: PreTrainedModel,
    *,
    lengths: tuple[int, ...] = (9, 6),
    side: str = "right",
    extra: int = 0,
    seed: int = 0,
    first: int = 0,
) -> dict[str, Tensor]:
    """One forward batch of examples ``first``, ``first + 1``, …, padded on ``side`` to ``max(lengths) + extra``.

    Example i is drawn from ``(seed, i)`` and its own length alone, never from the padding or its batch-mates.
    Images and spectrograms know neither lengths nor padding. Waveforms are always padded on the right, their
    lengths counted in frames after the convolutions. Decoder inputs are shorter than the encoder's and always
    padded on the right.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', not {side!r}")
    generators = [torch.Generator().manual_seed(1000 * seed + first + i) for i in range(len(lengths))]
    batch: dict[str, Tensor] = {}
    if family.kind == "vision":
        size = model.config.image_size
        batch["pixel_values"] = torch.stack([torch.randn(3, size, size, generator=g) for g in generators])
    elif model.main_input_name == "input_features":  # spectrograms of one fixed length, no mask
        shape = (model.config.num_mel_bins, 2 * model.config.max_source_positions)
        batch["input_features"] = torch.stack([torch.randn(shape, generator=g) for g in generators])
    elif family.kind == "audio":
        waves = [torch.randn(_samples(n), generator=g) for n, g in zip(lengths, generators, strict=True)]
        width = _samples(max(lengths) + extra)
        batch["input_values"], batch["attention_mask"] = _pad(waves, width, "right", 0.0)
    else:
        tokens = [_tokens(n, g) for n, g in zip(lengths, generators, strict=True)]
        batch["input_ids"], batch["attention_mask"] = _pad(tokens, max(lengths) + extra, side, PAD)
        takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        if side == "left" and takes_positions and not family.own_positions:
            batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if model.config.is_encoder_decoder:
        shorter = [n // 2 + 1 for n in lengths]
        tokens = [_tokens(n, g) for n, g in zip(shorter, generators, strict=True)]
        padded = _pad(tokens, max(shorter) + extra, "right", PAD)
        batch["decoder_input_ids"], batch["decoder_attention_mask"] = padded
    return batch


def valid_outputs(family: Family, output: Any, batch: dict[str, Tensor]) -> Tensor:
    """The output's rows at valid positions, example by example, as a float (n_valid, width) tensor."""
    states: Tensor = output.last_hidden_state if "last_hidden_state" in output else output.logits
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    if mask is None:
        return states.flatten(0, -2).float()
    if family.kind == "audio" and "decoder_attention_mask" not in batch:
        frames = torch.tensor([_frames(int(n)) for n in mask.sum(-1)], device=mask.device)
        mask = torch.arange(states.shape[1], device=mask.device) < frames[:, None]
    return states[mask.bool()].float()


def _tokens(length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(FIRST_TOKEN, VOCAB, (length,), generator=generator)


def _pad(rows: list[Tensor], width: int, side: str, value: float) -> tuple[Tensor, Tensor]:
    """The rows stacked to ``width`` columns, and the mask of their real entries."""
    padded = rows[0].new_full((len(rows), width), value)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        padded[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
    return padded, mask


def _samples(frames: int) -> int:
    """The waveform length that gives so many frames."""
    for kernel, stride in reversed(AUDIO_CONVS):
        frames = (frames - 1) * stride + kernel
    return frames


def _frames(samples: int) -> int:
    """The number of frames that a waveform of so many samples gives."""
    for kernel, stride in AUDIO_CONVS:
        samples = (samples - kernel) // stride + 1
    return samples
