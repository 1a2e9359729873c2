"""`--config FILE`: the options of a command in a YAML or JSON file; those on the command line override it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from crisp_attention.errors import OptionError, did_you_mean

FLAG = "--config"


def with_config(arguments: Sequence[str], commands: Mapping[str, type]) -> list[str]:
    """The words of a command line with those of its config file in place of `--config FILE`.

    They come first, so that the command line overrides them.

    Raises
    ------
    OptionError
        For a file that cannot be read, and for a key that is no option of the command.
    """
    words = list(arguments)
    at = next((i for i, word in enumerate(words) if word == FLAG or word.startswith(f"{FLAG}=")), None)
    named = [each for each in commands if words[: len(each.split())] == each.split()]
    command = max(named, key=len, default=None)
    if at is None or command is None:
        return words
    own = command.split()
    _, equals, file = words[at].partition("=")
    if not equals:
        if at + 1 == len(words):
            raise OptionError("config expects a YAML or JSON file", "config")
        file = words[at + 1]
    rest = words[len(own) : at] + words[at + (1 if equals else 2) :]
    return [*own, *_words(_read(Path(file)), file, command, commands[command]), *rest]


def _read(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"cannot read {file}: {' '.join(str(error).split())}", "config") from error
    if not isinstance(found, Mapping):
        raise OptionError(
            f"{file} holds {type(found).__name__}; expected options, such as epochs: 3", "config"
        )
    return found


def _words(given: Mapping[str, Any], file: str, command: str, options: type) -> list[str]:
    types, hints = get_type_hints(options), get_type_hints(options, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    known = [name for name in hints if tyro.conf.Positional not in marks[name]]
    words: list[str] = []
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = did_you_mean(name, known)
            raise OptionError(f"{file}: crisp {command} has no option {key}{close}", "config")
        is_flag = types[name] is bool
        if isinstance(value, bool) and not is_flag:
            raise OptionError(
                f"{file}: {name} must not be true or false, got {value}; quote words such as yes and no",
                "config",
            )
        if is_flag and not isinstance(value, bool):
            raise OptionError(f"{file}: {name} must be true or false, got {value!r}", "config")
        words += _option(name, value, repeated=tyro.conf.UseAppendAction in marks[name])
    return words


def _option(name: str, value: Any, *, repeated: bool) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is False or value == []:
        return []
    if value is True:
        return [flag]
    if isinstance(value, Mapping):  # of fields, as in training: {bf16: true}
        value = [f"{key}={_text(each)}" for key, each in value.items()]
    if repeated:
        return [
            word for each in (value if isinstance(value, list) else [value]) for word in (flag, _text(each))
        ]
    return [flag, *map(_text, value)] if isinstance(value, list) else [flag, _text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, Mapping | list) else str(value)
