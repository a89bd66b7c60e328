"""Read and check config.toml."""

import os
import re
import tomllib
from collections.abc import Sequence
from typing import Any

import msgspec

from fluxbudgetd.config.checking import checked, overlay
from fluxbudgetd.config.locations import expanded
from fluxbudgetd.config.reading import read_text
from fluxbudgetd.config.schema import Config
from fluxbudgetd.config.shown import Dialect, shortened, shown_file
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.paths import NoHomeError, home_directory
from fluxbudgetd.wire.text import one_line

_TOML = Dialect(text="a string", mapping="a table", sequence="an array", nothing="nothing")
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
# Python refuses to parse longer numbers, without saying where they are.
_LONG_NUMBER = re.compile(r"[0-9][0-9_]{4300,}")
_MOST_WORDS = 200


def load_config(path: str, *, required: bool) -> Config:
    """Return config.toml laid over the defaults; a missing file changes nothing unless it is required.

    Raises `ConfigError`. Blocks: call it in a worker thread.
    """
    text = read_text(path)
    if text is None and required:
        raise ConfigError(
            f"{shown_file(path)}: the file does not exist",
            "create it ('fluxbudgetd --print-config' prints the defaults), or leave out --config",
        )
    data = overlay(msgspec.to_builtins(Config()), {} if text is None else _parsed(text, path))
    config = checked(data, Config, path, _TOML, "write an allowed value, or remove the key to get the default")
    return msgspec.structs.replace(config, claude_dirs=_expanded(config.claude_dirs, path))


def _expanded(directories: Sequence[str], path: str) -> tuple[str, ...]:
    if not any(directory.startswith("~") for directory in directories):
        return tuple(directories)
    try:
        home = home_directory(os.environ, os.geteuid())
        return tuple(expanded(directory, home) for directory in directories)
    except ConfigError as exc:
        raise ConfigError(f"{shown_file(path)}: claude_dirs: {exc.message}", exc.hint) from exc
    except NoHomeError as exc:
        raise ConfigError(f"{shown_file(path)}: claude_dirs: {exc}", exc.hint) from exc


def _parsed(text: str, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise _broken(text, path, str(exc)) from exc
    except RecursionError as exc:
        raise ConfigError(
            f"{shown_file(path)}: arrays or tables are nested too deeply", "no key needs that: remove it"
        ) from exc
    except ValueError as exc:
        found = _LONG_NUMBER.search(text)
        line = text.count("\n", 0, found.start()) + 1 if found else 1
        raise ConfigError(
            f"{shown_file(path)}: line {line}: a number of more than 4300 digits", "write a smaller number"
        ) from exc


def _broken(text: str, path: str, problem: str) -> ConfigError:
    place = _PLACE.search(problem)
    what = shortened(one_line(_PLACE.sub("", problem)), _MOST_WORDS)
    if place is None or place[1] is None:
        where = f"line {text.count(chr(10)) + 1}, the end of the file"
    else:
        where = f"line {place[1]}, column {place[2]}"
    return ConfigError(f"{shown_file(path)}: {where}: {what}", "correct the line: the file must be TOML")
