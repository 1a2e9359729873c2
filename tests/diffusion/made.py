"""Runs of a comparison with chosen numbers."""

from crisp_attention.diffusion.runs import SHOWN, Run
from crisp_attention.diffusion.variants import Variant, variants


def run(variant: Variant, seed: int, final: float, **others: object) -> Run:
    """A run with this loss at the end."""
    given: dict[str, object] = {
        "accuracy": 0.9,
        "frechet": 4.0,
        "operations": 0.5,
        "softmax_share": 0.125,
        "linear_share": 0.8,
        "seconds": 10.0,
    }
    return Run(
        seed=seed,
        label=variant.label,
        attention=variant.attention,
        sparsity=variant.sparsity,
        loss=variant.loss,
        trained=variant.trained,
        method="dense" if variant.method is None else variant.method.spec,
        losses={0: 2 * final, 50: final},
        digits=bytes(range(64)).hex() * SHOWN,
        **given | others,  # type: ignore[arg-type]
    )


def runs(finals: dict[str, list[float]], sparsities: tuple[float, ...] = (0.9,)) -> list[Run]:
    """Runs of the variants with these labels, with one final loss for each seed."""
    known = {
        each.label: each
        for each in variants(sparsities, ("diffusion", "distillation"), ("all", "projection"), 2)
    }
    return [
        run(known[label], seed, loss) for label, losses in finals.items() for seed, loss in enumerate(losses)
    ]
