"""What a client concludes from a state file without the daemon: whether a run is exhausted, and stopped."""

import pytest

from fluxbudgetctl.state_file import State

FIELDS = {
    "run": "r1",
    "phase": "executing",
    "state": "exceeded",
    "budget": "1000",
    "spent": "1000",
    "remaining": "0",
    "pct": "100.0",
    "reserved": "0",
    "stale": "0",
    "cost_basis": "billing",
    "enforcement": "hard",
    "allowed_to": "",
    "allowed_until": "",
    "as_of": "2026-02-20T17:05:55.000000Z",
}
PAST, FUTURE = "2001-01-01T00:00:00.000000Z", "9001-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("changes", "is_exhausted", "is_stopped"),
    [
        ({}, True, True),
        ({"enforcement": "soft"}, True, False),
        ({"state": "warning", "spent": "999"}, False, False),
        ({"state": "unlimited", "budget": "", "remaining": "", "pct": ""}, False, False),
        ({"allowed_to": "1001"}, False, False),
        ({"allowed_to": "1000"}, True, True),
        ({"allowed_until": FUTURE}, False, False),
        ({"allowed_until": PAST}, True, True),
        ({"allowed_to": "1001", "allowed_until": PAST}, False, False),
    ],
)
def test_stopped_by_its_last_state(changes: dict[str, str], is_exhausted: bool, is_stopped: bool) -> None:
    state = State({**FIELDS, **changes})
    assert (state.is_exhausted, state.is_stopped) == (is_exhausted, is_stopped)
    state.check(None)
    assert state.allowed == (not is_exhausted)
    assert (state.refusal is None) == state.allowed


def test_file_of_an_older_daemon_knows_no_allowance() -> None:
    old = {name: value for name, value in FIELDS.items() if not name.startswith("allowed")}
    assert State(old).is_stopped
    del old["enforcement"]
    assert not State(old).is_stopped


@pytest.mark.parametrize("damaged", ["-1", "1e9", "x"])
def test_damaged_allowance_makes_the_file_invalid(damaged: str) -> None:
    with pytest.raises(ValueError, match="is not a count"):
        State({**FIELDS, "allowed_to": damaged})
