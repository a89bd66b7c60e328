"""config.toml, read and checked."""

import re
import tomllib
from typing import Any

import msgspec

from fluxbudgetd.config.checking import checked, overlay
from fluxbudgetd.config.reading import read_text
from fluxbudgetd.config.schema import Config
from fluxbudgetd.config.shown import Dialect, one_line, shortened, shown_file
from fluxbudgetd.errors import ConfigError

_TOML = Dialect(text="text", mapping="a table", sequence="an array", nothing="nothing")
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
# Python refuses to read a longer one, without saying where it is.
_LONG_NUMBER = re.compile(r"[0-9][0-9_]{4300,}")
_MOST_WORDS = 200


def load_config(path: str, *, required: bool) -> Config:
    """Return what config.toml says, laid over the defaults, which a file that is absent leaves as they are.

    Raises `ConfigError`. It blocks: call it in a worker thread.
    """
    text = read_text(path)
    if text is None and required:
        raise ConfigError(
            f"{shown_file(path)}: the file does not exist",
            "create it ('fluxbudgetd --print-config' prints the defaults), or leave --config out",
        )
    data = overlay(msgspec.to_builtins(Config()), {} if text is None else _parsed(text, path))
    return checked(data, Config, path, _TOML, "write what is allowed, or remove it to have the default")


def _parsed(text: str, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise _broken(text, path, str(exc)) from exc
    except RecursionError as exc:
        raise ConfigError(
            f"{shown_file(path)}: arrays or tables are nested too deep", "nothing here is nested"
        ) from exc
    except ValueError as exc:
        found = _LONG_NUMBER.search(text)
        line = text.count("\n", 0, found.start()) + 1 if found else 1
        raise ConfigError(
            f"{shown_file(path)}: line {line}: a number of more than 4300 digits", "write a smaller number"
        ) from exc


def _broken(text: str, path: str, said: str) -> ConfigError:
    place = _PLACE.search(said)
    what = shortened(one_line(_PLACE.sub("", said)), _MOST_WORDS)
    if place is None or place[1] is None:
        where = f"line {text.count(chr(10)) + 1}, the end of the file"
    else:
        where = f"line {place[1]}, column {place[2]}"
    return ConfigError(f"{shown_file(path)}: {where}: {what}", "correct the line: the file has to be TOML")
