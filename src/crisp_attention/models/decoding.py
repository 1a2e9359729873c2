"""While decoding with a cache, the mean key of each block is carried along, not computed anew."""

from dataclasses import dataclass
from threading import local
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor

from crisp_attention.models.block_means import BlockMeans


@dataclass
class Decoding(local):
    """What one attention module remembers from decoding step to decoding step, in each thread of its own.

    The means are used again only if the cache holds the very tensor that the last step left in it,
    unchanged: reordering for beams, cropping or another prompt put another one there.
    """

    layer: ReferenceType[Any] | None = None
    keys: ReferenceType[Tensor] | None = None
    version: int = 0
    means: BlockMeans | None = None

    def __reduce__(self) -> tuple[type["Decoding"], tuple[()]]:
        return Decoding, ()  # a copy of the model generates with a cache of its own

    def before(self, layer: Any) -> None:
        """Note, before a forward pass adds to it, the layer of the cache that the pass will use."""
        held = _keys(layer)
        if held is None or self.keys is None or self.keys() is not held or held._version != self.version:
            self.means = None
        self.layer = None if held is None else ref(layer)

    def block_means(self, key: Tensor, valid: Tensor, size: int) -> Tensor | None:
        """Mean keys (B, G, n, D) of the blocks that the one query (`valid`: (B, 1, 1, S)) sees.

        None if there is no cache that can be followed.
        """
        held = _keys(self.layer and self.layer())
        if held is None or valid.shape[1] != 1:
            return None
        key, valid = key.detach(), valid.expand(key.shape[0], -1, -1, -1)
        if self.means is not None and self.means.follows(valid):
            self.means.add(key, valid)
        else:
            self.means = BlockMeans.of(key, valid, size)
        self.keys, self.version = ref(held), held._version
        return self.means.means()


def _keys(layer: Any) -> Tensor | None:
    keys = getattr(layer, "keys", None)
    return keys if isinstance(keys, Tensor) and not keys.is_inference() else None
