"""Ledgers of older versions keep their totals, and go on counting.

`fixtures/make_sessions.py` had the old daemons write the ledgers, and say what each run had spent.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.daemon import Home
from harness.transcripts import Transcript

FIXTURES = Path(__file__).parent / "fixtures"
FIELDS = ("input", "output", "cache_read", "cache_creation")


@pytest.fixture(params=[1, 2, 3, 4])
def upgraded(home: Home, request: pytest.FixtureRequest) -> tuple[Home, Any]:
    """Return a home whose daemon has upgraded a ledger, and what the old daemon said. The sources are gone."""
    home.state.mkdir()
    shutil.copy(FIXTURES / f"sessions-v{request.param}.db", home.state / "ledger.db")
    home.start()
    return home, json.loads((FIXTURES / f"sessions-v{request.param}.json").read_text())


def test_totals_are_kept(upgraded: tuple[Home, Any]) -> None:
    """Sessions that were attached before still count what they counted, even after another restart."""
    home, said = upgraded
    for _ in range(2):
        for run, expected in said.items():
            shown = home.json("run", "show", "--run", run)
            agents = {line["name"]: [line[field] for field in FIELDS] for line in shown["by_agent"]}
            assert (run, shown["spend"]["spent"], agents) == (run, expected["spent"], expected["agents"])
        home.stop_all()
        home.start()


@pytest.mark.parametrize(
    ("session", "message", "request_id", "tokens"),
    [("moved", "m6", "r6", 6000), ("relay", "m10", None, 10_000)],
    ids=["requests", "relay"],
)
def test_old_responses_are_known_again(
    home: Home, session: str, message: str, request_id: str | None, tokens: int
) -> None:
    """A file that is read from its start again, because it was replaced, adds only what is new in it."""
    home.state.mkdir()
    shutil.copy(FIXTURES / "sessions-v4.db", home.state / "ledger.db")
    home.start()
    before = json.loads((FIXTURES / "sessions-v4.json").read_text())["second"]["spent"]
    again = Transcript(home.root / "claude", session)
    again.response(message, request=request_id, tokens=(tokens, 1, 5, 3))
    again.response("m99", request="r99", tokens=(1, 1, 0, 0))
    # The sessions that interstat counts are stale without it.
    assert home.spend("second").spent == before + 2
