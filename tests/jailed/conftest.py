"""Tests that run inside of a jail, as its user: `tests/test_user_manager.py` starts them there."""

import os
from collections.abc import Iterator

import pytest

from harness.jail_service import Account, account

collect_ignore_glob = [] if os.environ.get("FLUXBUDGET_JAILED") else ["test_*.py"]


@pytest.fixture
def home() -> Iterator[Account]:
    """The user's home, in which nothing is installed yet."""
    with account() as made:
        yield made


@pytest.fixture
def service(home: Account) -> Account:
    """The same, with the units installed as they are: the socket listens, and nobody has called yet."""
    home.install()
    return home
