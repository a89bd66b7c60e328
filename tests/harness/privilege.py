"""Root's privileges: tests that need them, and commands that root runs without overriding file permissions."""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

_IS_ROOT = os.geteuid() == 0

#: A command prefix under which file permissions hold even for root.
OBEDIENT: tuple[str, ...] = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    if _IS_ROOT
    else ()
)

_Test = TypeVar("_Test", bound=Callable[..., object])


def needs_root(purpose: str, missing: Callable[[], str] = str) -> Callable[[_Test], _Test]:
    """Mark a test as `privileged`, and skip it for other users or if something is missing.

    The marker and the skip are set in one place, so that `-m privileged` selects exactly the tests that other users
    skip. `purpose` completes the sentence "only root can …"; `missing` returns what else keeps the test from running
    on this machine, or an empty string.
    """
    if _IS_ROOT:
        reason = f"root cannot {purpose} here: {why}" if (why := missing()) else ""
    else:
        reason = f"only root can {purpose}"

    def mark(test: _Test) -> _Test:
        for decorator in (pytest.mark.skipif(bool(reason), reason=reason), pytest.mark.privileged):
            test = decorator(test)
        return test

    return mark
