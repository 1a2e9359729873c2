"""The notice for transformers: an attribute of its configurations that warns when it is filled from a file.

Imports nothing heavy: the package's `__init__` installs it as soon as transformers is imported.
"""

import re
import sys
from types import FrameType, ModuleType
from typing import Any

from crisp_attention.models.notice import is_restoring, notify

CONFIG_KEY = "crisp_attention"
# what reads a model's configuration without loading a model: preprocessing, and PEFT for the size of a vocabulary
ONLY_LOOKS = re.compile(
    r"transformers.models.auto.(tokenization|feature_extraction|\w*processing)_auto|peft.utils.save_and_load"
)


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
                "This checkpoint was trained with sparse attention, but a model loaded this way is dense, and without "
                "what its attention may have learned, until crisp_attention.restore(model) is called. "
                "crisp_attention.load(path) does both."
            )

    def __delete__(self, config: Any) -> None:
        del config.__dict__[CONFIG_KEY]


def _no_model_is_loaded(config: Any) -> bool:
    """Whether the config is only looked at: by a resuming Trainer (no model type), for a tokenizer, by PEFT."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if ONLY_LOOKS.search(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return not type(config).model_type


def install(configuration_utils: ModuleType) -> None:
    """Give transformers' configurations the attribute. No other attribute or behaviour changes."""
    setattr(configuration_utils.PreTrainedConfig, CONFIG_KEY, SettingsAttribute())
