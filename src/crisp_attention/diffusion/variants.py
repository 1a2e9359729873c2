"""What is compared: the attention of each variant, the loss it is fine-tuned by, and what of it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from crisp_attention.diffusion.options import LOSSES, TRAINED
from crisp_attention.errors import OptionError
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method
from crisp_attention.methods.sparse_linear import SparseLinear

DENSE, SLA, SPARSE, LINEAR, SUM = "dense", "SLA", "sparse only", "linear only", "plain sum"
NEGLIGIBLE = 0.1  # share of the blocks that get nothing, as in the paper


@dataclass(frozen=True)
class Variant:
    """One line of the comparison; the method is None for dense attention."""

    attention: str
    sparsity: float | None
    loss: str
    trained: str
    method: Method | None

    @property
    def label(self) -> str:
        """As pages and tables name it; the usual loss and training go without saying."""
        share = "" if self.sparsity is None else f" {100 * self.sparsity:g} %"
        extra = [self.loss] * (self.loss != "diffusion") + ["projection alone"] * (self.trained != "all")
        return f"{self.attention}{share}" + (f", {', '.join(extra)}" if extra else "")

    @property
    def name(self) -> str:
        """As files are named."""
        return self.label.replace(" %", "").replace(",", "").replace(" ", "-").lower()


def variants(
    sparsities: Sequence[float], losses: Sequence[str], trained: Sequence[str], block_size: int
) -> list[Variant]:
    """All that these ask for, dense attention first.

    Raises OptionError for unknown words, and for sparsities that are none.
    """
    for option, words, known in (("loss", losses, LOSSES), ("train", trained, TRAINED)):
        for word in words:
            if word not in known:
                raise OptionError(f"{option} must be one of {', '.join(known)}, got {word!r}", option)
    found: list[Variant] = []
    for loss in dict.fromkeys(losses):
        if loss == "diffusion":  # dense attention is what is distilled
            found.append(Variant(DENSE, None, loss, "all", None))
        for sparsity in sorted(set(sparsities)):
            try:
                methods = {each: _method(each, sparsity, block_size) for each in (SLA, SPARSE, SUM)}
            except ValueError as error:
                raise OptionError(f"sparsity: {error}", "sparsity") from error
            for attention, method in methods.items():
                ways = [each for each in dict.fromkeys(trained) if each == "all" or attention == SLA]
                found += [Variant(attention, sparsity, loss, way, method) for way in ways]
        if "all" in trained:
            found.append(Variant(LINEAR, None, loss, "all", _method(LINEAR, 0.5, block_size)))
    return found


def _method(attention: str, sparsity: float, block_size: int) -> Method:
    critical = round(1 - sparsity, 9)
    if attention == SPARSE:
        return Method(BlockTopK(sparsity, block_size, local_blocks=0))
    if attention == SUM:
        return SparseLinear(critical, NEGLIGIBLE, block_size, combine="sum")
    if attention == LINEAR:
        # which blocks does not matter: every key is attended to, and what the softmax part gives is not used
        return Method(
            BlockTopK(sparsity, block_size, local_blocks=0), branch=Linear(0.0, scope="all", combine="alone")
        )
    return SparseLinear(critical, NEGLIGIBLE, block_size)
