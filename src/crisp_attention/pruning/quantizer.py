"""How transformers makes the compressed layers of a model that it loads, in the place of a quantizer's."""

from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from crisp_attention.kernels.packing import words
from crisp_attention.models.persistence import COMPRESSED
from crisp_attention.pruning.compressed import BlockLinear, note, put
from crisp_attention.pruning.gelu import gelu_after


class BlocksConfig(QuantizationConfigMixin):
    """The sizes of the compressed layers by name, as a model's config has them."""

    def __init__(self, layers: dict[str, dict[str, Any]], quant_method: str = COMPRESSED) -> None:
        self.quant_method: Any = quant_method
        self.layers = layers


class Blocks(HfQuantizer):
    """Makes compressed layers; what transformers calls quantized is not."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        config: Any = self.quantization_config
        known = dict(model.named_modules())
        base = f"{model.base_model_prefix}."
        for name, sizes in config.layers.items():
            # saved with a head and loaded without, or the other way round
            ways = (name, name.removeprefix(base), base + name)
            own = next((each for each in ways if each in known), name)
            put(model, own, empty(**sizes), gelu_after(model, own) if sizes["gelu"] else None)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        for layer in (each for each in model.modules() if isinstance(each, BlockLinear)):
            layer.check()
        for own in ("is_quantized", "quantization_method", "hf_quantizer"):
            vars(model).pop(own, None)  # so that it is a model like others, also for `half` and `pickle`
        note(model)

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def empty(
    rows: int, kept: int, size: int, inputs: int, bias: bool, gelu: bool, groups: list[int] | None = None
) -> BlockLinear:
    """A layer of these sizes, whose numbers are still to be read."""
    held, of = groups or (1, 1)
    lines = size // of * held
    return BlockLinear(
        torch.empty(rows, kept, lines, size),
        torch.zeros(rows, kept, dtype=torch.int32),
        inputs,
        torch.empty(rows * size) if bias else None,
        gelu,
        torch.empty(rows, kept, words(lines, of), size, dtype=torch.int32) if groups else None,
        of,
    )
