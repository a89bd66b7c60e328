"""Fixtures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.daemon import Daemon, Home
from harness.interstat import Interstat


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A throw-away home; whatever daemons were started in it are ended, and must have kept their loops free."""
    made = Home(tmp_path)
    yield made
    made.stop_all()


@pytest.fixture
def interstat(home: Home) -> Iterator[Interstat]:
    """Interstat's database of that home."""
    made = Interstat(home.interstat)
    yield made
    made.close()


@pytest.fixture
def daemon(home: Home, interstat: Interstat) -> Daemon:
    """A running daemon over an existing, empty interstat database."""
    return home.start()
