"""Do budgets that `crisp profile` recommended hold on other data? The numbers in docs/results.md.

python benchmarks/budgets_elsewhere.py --dataset ../shared/data/sst2 --budgets runs/profile-sst2.json
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.utils.data import DataLoader

import crisp_attention as crisp
from crisp_attention.runs.data import load_task
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.spec import Data


@dataclass(frozen=True)
class Options:
    """Compare budgets with one sparsity everywhere, on the validation split."""

    dataset: str
    """A folder of data."""
    budgets: Path
    """What `crisp profile --save` wrote."""
    model: str = "builtin:minilm"
    """The model that was profiled."""


def main(options: Options) -> None:
    """Print kept mass at achieved sparsity: as the dense model attends, and measured with all layers sparse."""
    task = load_task(Data(source=options.dataset))
    source = load_source(options.model, task, None)
    loader = DataLoader(source.encode(task.splits["validation"]), batch_size=32, collate_fn=source.collate)  # type: ignore
    own = crisp.budgets(options.budgets)
    even = crisp.TopK(own.expected["uniform"]["target"])
    profile = crisp.profile(source.model, loader)
    for name, method in (("budgets", own), ("uniform", even)):
        sparsity, mass = profile.kept(method)
        crisp.sparsify(source.model.eval(), method)
        with torch.no_grad(), crisp.measuring(source.model) as measured:
            for batch in loader:
                source.model(**batch)
        real = measured.summary()
        print(
            f"{name}: {mass:.1%} of the dense mass at {sparsity:.1%} sparsity; with all layers sparse "
            f"{real['kept_mass']:.1%} at {real['sparsity']:.1%}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
