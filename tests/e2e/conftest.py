"""Fixtures of the tests with the real Claude Code."""

from collections.abc import Iterator

import pytest

from harness import npm
from harness.claude_code.api import MessagesApi
from harness.claude_code.sessions import ClaudeCode
from harness.claude_code.stage import Stage
from harness.daemon import Home


@pytest.fixture
def api(home: Home) -> Iterator[MessagesApi]:
    """Yield the model's API. At the end, require that it could answer every request."""
    with MessagesApi(home.root / "api") as made:
        yield made
    assert made.faults == []


@pytest.fixture
def stage(home: Home, api: MessagesApi) -> Stage:
    """Return a run in a new home with a daemon, where sessions of Claude Code can play."""
    program = npm.claude_code()
    if program is None:
        pytest.skip("Claude Code is not installed (`make` installs it if there is npm)")
    return Stage(home, home.start(), ClaudeCode(program, home, api), api)
