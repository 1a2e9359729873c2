"""Models of transformers with compressed layers, saved by `save_pretrained` and loaded by `from_pretrained`.

The config says which layers are compressed, in the place of what a quantized model says of itself, so that transformers
makes those layers before it reads their weights. The package's `__init__` installs it when transformers can.
"""

from types import ModuleType

from crisp_attention.models.persistence import COMPRESSED


def install(auto: ModuleType) -> None:
    """Tell transformers how such a model is made; called with the module `transformers.quantizers.auto`."""
    from crisp_attention.pruning.quantizer import Blocks, BlocksConfig

    auto.register_quantization_config(COMPRESSED)(BlocksConfig)
    auto.register_quantizer(COMPRESSED)(Blocks)
