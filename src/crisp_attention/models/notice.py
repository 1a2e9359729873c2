"""A sparse checkpoint that is loaded the plain way says that it came back dense.

Imports nothing heavy: the package's `__init__` installs it as soon as transformers is imported.
"""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from sysconfig import get_path
from types import FrameType, ModuleType
from typing import Any

CONFIG_KEY = "crisp_attention"
# what reads a model's configuration without loading a model: preprocessing, and PEFT for the size of a vocabulary
ONLY_LOOKS = re.compile(
    r"transformers.models.auto.(tokenization|feature_extraction|\w*processing)_auto|peft.utils.save_and_load"
)
LIBRARY = re.compile(r"[/\\](crisp_attention|transformers|huggingface_hub|peft|wrapt)[/\\]")
INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]|^<frozen ")
_restoring: ContextVar[bool] = ContextVar("crisp_restoring", default=False)


class DenseUntilRestored(UserWarning):
    """A checkpoint holds Crisp settings that are not active."""


@contextmanager
def restoring() -> Iterator[None]:
    """No notice inside: the settings are about to be applied."""
    token = _restoring.set(True)
    try:
        yield
    finally:
        _restoring.reset(token)


def is_restoring() -> bool:
    """Whether this is inside `restoring`."""
    return _restoring.get()


def notify(message: str) -> None:
    """Warn at the line that called a library, every time and not only the first."""
    file, line = _caller()
    warnings.warn_explicit(message, DenseUntilRestored, file, line, registry={})


class SettingsAttribute:
    """`config.crisp_attention`: an ordinary attribute that warns when it is filled from a file."""

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        if config is None:
            return self
        try:
            return config.__dict__[CONFIG_KEY]
        except KeyError:
            raise AttributeError(CONFIG_KEY) from None

    def __set__(self, config: Any, settings: Any) -> None:
        config.__dict__[CONFIG_KEY] = settings
        if settings is not None and not is_restoring() and not _no_model_is_loaded(config):
            notify(
                "This checkpoint was trained with sparse attention, but a model loaded this way is dense until "
                "crisp_attention.restore(model) is called. crisp_attention.load(path) does both."
            )

    def __delete__(self, config: Any) -> None:
        del config.__dict__[CONFIG_KEY]


def _no_model_is_loaded(config: Any) -> bool:
    """Whether the config is only looked at: by a resuming Trainer (no model type), for a tokenizer, by PEFT."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if ONLY_LOOKS.search(frame.f_code.co_filename):
            return True
    return not type(config).model_type


def _caller() -> tuple[str, int]:
    """The nearest line of no installed package; in an installed program, the nearest of none of the libraries here."""
    lines: list[tuple[str, int]] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    others = [each for each in lines if not LIBRARY.search(each[0])] or lines[-1:]
    return next((each for each in others if not _is_installed(each[0])), others[0])


def _is_installed(file: str) -> bool:
    # scripts of the environment only start a program
    folders = (get_path("stdlib"), get_path("scripts"))
    return bool(INSTALLED.search(file)) or any(Path(file).is_relative_to(each) for each in folders)


def install(configuration_utils: ModuleType) -> None:
    """Give transformers' configurations the attribute. No other attribute or behaviour changes."""
    setattr(configuration_utils.PreTrainedConfig, CONFIG_KEY, SettingsAttribute())
