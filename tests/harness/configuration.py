"""What the tests of configuration files share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

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
    "slicing": {"multiplier": 0.4, "median": 0.41, "sliced_runs": 12, "full_runs": 30, "was": 0.5},
}  # fmt: skip


def wrong(load: Callable[[], object], path: Path) -> str:
    """Return the message of the error that loading ends with, behind the file's name; it is one printable line."""
    with pytest.raises(ConfigError) as caught:
        load()
    assert caught.value.message.isprintable()
    assert caught.value.hint.isprintable()
    assert caught.value.hint
    file, separator, said = caught.value.message.partition(": ")
    assert (file, separator) == (str(path), ": ")
    return said


def holds(load: Callable[[], object], kind: type) -> bool:
    """Tell whether loading gives a value of this kind, or an error that is one printable line; no other exception."""
    try:
        return isinstance(load(), kind)
    except ConfigError as exc:
        return exc.message.isprintable()


def anything(pieces: list[str]) -> st.SearchStrategy[bytes]:
    """Return bytes that mean nothing, and such as nearly mean something."""
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


#: what stands in a file's place, and what is said of it; nothing of it may make a loader wait
IN_THE_WAY = [
    pytest.param(_directory, "it is a directory; allowed: a regular file", id="directory"),
    pytest.param(_fifo, "it is not a regular file; allowed: a regular file", id="fifo"),
    pytest.param(_device, "it is not a regular file; allowed: a regular file", id="device"),
    pytest.param(_loop, "it cannot be read: Too many levels of symbolic links", id="loop"),
]
