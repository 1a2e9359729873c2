"""Models of transformers with compressed layers, saved by `save_pretrained` and loaded by `from_pretrained`.

The config says which layers are compressed, in the place of what a quantized model says of itself, so that transformers
makes those layers before it reads their weights. The package's `__init__` installs it when transformers can.
"""

from types import ModuleType
from typing import Any

import torch

from crisp_attention.kernels.packing import words
from crisp_attention.models.persistence import COMPRESSED
from crisp_attention.pruning.compressed import BlockLinear, put
from crisp_attention.pruning.gelu import gelu_after


def install(auto: ModuleType) -> None:
    """Tell transformers how such a model is made; called with the module `transformers.quantizers.auto`."""
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    class BlocksConfig(QuantizationConfigMixin):
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

        def is_serializable(self, *_: Any, **__: Any) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True

        @property
        def is_qat_trainable(self) -> bool:
            """What lets a Trainer train all of it, as its blocks are parameters like others."""
            return True

    auto.register_quantization_config(COMPRESSED)(BlocksConfig)
    auto.register_quantizer(COMPRESSED)(Blocks)


def empty(
    rows: int, kept: int, size: int, inputs: int, bias: bool, gelu: bool, groups: list[int] | None = None
) -> BlockLinear:
    """A layer of these sizes, whose numbers are still to be read."""
    held, of = groups or (1, 1)
    lines = size // of * held
    return BlockLinear(
        torch.empty(rows, kept, lines, size),
        torch.empty(rows, kept, dtype=torch.int32),
        inputs,
        torch.empty(rows * size) if bias else None,
        gelu,
        torch.empty(rows, kept, words(lines, of), size, dtype=torch.int32) if groups else None,
        of,
    )
