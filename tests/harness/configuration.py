"""Samples, checks and obstacles for the tests of configuration files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from fluxbudgetd.config.locations import ClaudeDirectories
from fluxbudgetd.errors import ConfigError

#: The shipped config.toml.
TEMPLATE = Path(__file__).parents[2] / "config" / "fluxbudget.toml"
SPREAD = {"mean": 2, "p50": 1, "p90": 3}
SAMPLE = {"billing": SPREAD, "total": SPREAD, "sample_size": 3}
CALIBRATION = {
    "v": 1,
    "provenance": {
        "at": "2026-11-21T00:00:00.000000Z", "version": "0.1.0", "ledger": "/l", "interstat": "/i",
        "runs": 3, "rows": 9, "triages": 2,
    },
    "phases": {"executing": SAMPLE},
    "agents": {"fd-safety": SAMPLE},
    "slicing": {
        "multiplier": 0.4, "median": 0.41, "sliced_runs": 12, "full_runs": 30, "was": 0.5, "sliced_reviews": 11,
    },
    "reviews": {
        "plan": {
            "reviews": 9, "measured": 8, "median_billing": 90_000, "median_pct": 60,
            "deferred": 4, "ran_anyway": 1, "overridden": 2,
        },
    },
}  # fmt: skip


def claude_directory(path: Path) -> ClaudeDirectories:
    """Return Claude Code's directories: this one, which need not exist."""
    return ClaudeDirectories(default=(str(path),))


def wrong(load: Callable[[], object], path: Path) -> str:
    """Return the error message of loading, without the file's name; require that it is one printable line."""
    with pytest.raises(ConfigError) as caught:
        load()
    assert caught.value.message.isprintable()
    assert caught.value.hint.isprintable()
    assert caught.value.hint
    file, separator, message = caught.value.message.partition(": ")
    assert (file, separator) == (str(path), ": ")
    return message


def holds(load: Callable[[], object], kind: type) -> bool:
    """Return True if loading gives a value of this kind, or an error whose message is one printable line."""
    try:
        return isinstance(load(), kind)
    except ConfigError as exc:
        return exc.message.isprintable()


def anything(pieces: list[str]) -> st.SearchStrategy[bytes]:
    """Return a strategy for random bytes, and for bytes that are nearly valid."""
    return st.binary(max_size=40) | st.lists(st.sampled_from(pieces), max_size=20).map(
        lambda chosen: "".join(chosen).encode()
    )


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


#: Obstacles in place of a file, and the message about each. None may block a loader.
IN_THE_WAY = [
    pytest.param(_directory, "it is a directory; allowed: a regular file", id="directory"),
    pytest.param(_fifo, "it is not a regular file; allowed: a regular file", id="fifo"),
    pytest.param(_device, "it is not a regular file; allowed: a regular file", id="device"),
    pytest.param(_loop, "it cannot be read: Too many levels of symbolic links", id="loop"),
]
