"""`crisp demo`: a small study on real data that comes with the package's own dependencies."""

from rich.console import Console

from crisp_attention.cli.options import DemoOptions, SweepOptions, words
from crisp_attention.cli.sweep import run_sweep
from crisp_attention.studies.folder import StudyFolder

DENSE = 3  # times the epochs of sparse attention


def run_demo(options: DemoOptions, console: Console) -> StudyFolder:
    """Run the study and report; raises as `run_sweep` does."""
    return run_sweep(demo_study(options), console, command=["crisp", "demo", *words(options)])


def demo_study(options: DemoOptions) -> SweepOptions:
    """Dense, top-k and random keys in a Vision Transformer trained from scratch on handwritten digits.

    The learning rate, and that dense takes three times the epochs, were chosen for dense and for top-k 80 % each, on
    training images alone (benchmarks/tune_digits.py, docs/results.md); the other sparse lines use the recipe of top-k.
    """
    return SweepOptions(
        model="builtin:vit",
        dataset="builtin:digits",
        output=options.output,
        method=("topk", "random:sparsity=0.8"),
        sparsity=options.sparsity,
        seeds=options.seeds,
        workers=options.workers,
        learning_rate=3e-4,
        epochs=options.epochs,
        recipe=(f"dense:epochs={DENSE * options.epochs:g}",),
        training=(
            "use_cpu=true",
            "save_strategy=no",
            "eval_strategy=steps",
            "eval_steps=0.1",
            "logging_steps=0.05",
            "train_sampling_strategy=random",
            "per_device_eval_batch_size=512",
        ),
    )
