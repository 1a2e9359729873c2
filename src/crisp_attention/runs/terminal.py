"""Printing on any terminal, pipe or file, by one process only. Imports nothing heavy."""

import codecs
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

CANNOT_PRINT = 1
TABLE_WIDTH = 80
SPELLED = "spelled"
# signs in our own messages that ASCII lacks; without them numbers would lose their sign
SPELLINGS = {
    "−": "-",
    "–": "-",
    "±": "+/-",
    "×": "x",
    "≤": "<=",
    "…": "...",
    "’": "'",
    "α": "alpha",
    "ε": "epsilon",
    "τ": "tau",
    "·": ".",
    "●": "*",
    "✗": "x",
    "◌": "o",
    "•": "*",
}
GRACE = 5.0  # seconds


@contextmanager
def any_terminal() -> Iterator[None]:
    """Characters that a terminal, pipe or file cannot encode are spelled in ASCII, or become question marks.

    When standard output cannot be written any more, the block ends with SystemExit: silently if
    its reader has gone (`crisp methods | head -1`), else with the reason.
    """
    for stream in (sys.stdout, sys.stderr):
        replace_unencodable(stream)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if can_write():
            raise
        with open(os.devnull, "w") as nowhere:  # what is left in the buffer goes there at exit
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(CANNOT_PRINT)


def replace_unencodable(stream: object, encoding: str | None = None) -> None:
    """Keep unencodable characters from raising; with `encoding`, switch the stream to it."""
    codecs.register_error(SPELLED, _spelled)
    if isinstance(stream, TextIOWrapper):  # None where a process has no output at all
        stream.reconfigure(encoding=encoding, errors=SPELLED)


def table_console() -> "Console":
    """Standard output for tables of numbers: narrower terminals break lines, where a table would cut numbers."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    return console


def say(console: "Console", *lines: str) -> None:
    """Print lines as they are, each in one piece however narrow the terminal is."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def can_write() -> bool:
    """Whether standard output takes a line; an empty one is printed if it does."""
    try:
        print(flush=True)  # to write nothing would not show it
    except OSError:
        return False
    return True


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELLINGS.get(each, "?") for each in error.object[error.start : error.end]), error.end


def is_main() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first of several.

    torchrun and accelerate launch tell each process its rank in the environment.
    """
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def after_main() -> None:
    """Give the main process time to report why a run ends: launchers stop all processes as soon as one has ended."""
    if not is_main():
        time.sleep(GRACE)


def be_quiet() -> None:
    """No progress bars and no warnings of datasets and transformers in this process."""
    import datasets
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning where data loaders fork
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors reach the user as DataError
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars and no warnings of datasets and transformers inside the block."""
    import datasets
    import transformers

    bars, words = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    logging = transformers.utils.logging
    their_bars, their_words = logging.is_progress_bar_enabled(), logging.get_verbosity()
    be_quiet()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(words)
        logging.set_verbosity(their_words)
        if bars:
            datasets.enable_progress_bars()
        if their_bars:
            logging.enable_progress_bar()
