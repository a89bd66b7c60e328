"""Fixtures of the tests that run inside a jail, as its user. `tests/test_user_manager.py` starts them."""

import os
from collections.abc import Iterator

import pytest

from harness.jail_service import Account, account

collect_ignore_glob = [] if os.environ.get("FLUXBUDGET_JAILED") else ["test_*.py"]


@pytest.fixture
def home() -> Iterator[Account]:
    """The user's home directory, with nothing installed."""
    with account() as made:
        yield made


@pytest.fixture
def service(home: Account) -> Account:
    """The user's home directory with the units installed. The socket listens, and the daemon is not running yet."""
    home.install()
    return home
