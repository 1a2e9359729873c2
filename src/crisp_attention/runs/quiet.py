"""Silence where other libraries would talk: our own messages say what matters."""

import os

import datasets
import transformers


def be_quiet() -> None:
    """No progress bars and no warnings of datasets and transformers in this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning where data loaders fork
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors reach the user as DataError
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
