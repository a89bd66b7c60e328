"""Totals of interstat's rows of every kind, through the real daemon."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.text import fold
from harness.daemon import Daemon, Home, started
from harness.interstat import OLD_SCHEMA, Interstat, stamp


def test_null_row_counts_when_it_is_updated(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A row is inserted before its tokens are known."""
    run = started(home, token_budget=1000, session="s1")
    row = interstat.insert("s1")
    assert home.ok("remaining", "--run", run) == "1000"
    interstat.update(row, input_tokens=100, output_tokens=50)
    assert home.ok("remaining", "--run", run) == "850"


def test_updated_row_moves_the_total_up_and_down(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    row = interstat.insert("s1", input_tokens=100, output_tokens=0)
    for tokens in (500, 20, 0, 300):
        interstat.update(row, input_tokens=tokens, output_tokens=1)
        assert home.spent(run) == tokens + 1
    interstat.update(row, input_tokens=None, output_tokens=None)
    assert home.spent(run) == 0


def test_new_and_deleted_rows(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The main session's row is inserted with its tokens. A deleted row no longer counts."""
    run = started(home, session="s1")
    interstat.insert("s1", "main-session", input_tokens=1000, output_tokens=100)
    gone = interstat.insert("s1", "fd-safety", input_tokens=7, output_tokens=0)
    assert home.spent(run) == 1107
    interstat.connection.execute("DELETE FROM agent_runs WHERE id = ?", (gone,))
    assert home.spent(run) == 1100


def test_prefixed_names_are_one_agent(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    interstat.insert("s1", "interflux:fd-quality", input_tokens=1, output_tokens=2)
    interstat.insert("s1", "fd-quality", input_tokens=10, output_tokens=20)
    interstat.insert("s1", "other:fd-quality", input_tokens=100, output_tokens=0)
    by_agent = {one["name"]: one["billing"] for one in home.json("run", "show", "--run", run)["by_agent"]}
    assert by_agent == {"fd-quality": 33, "other:fd-quality": 100}


ODD_IDS = ["it's", 'a "quoted" one', "semi;colon -- DROP", "naïve ☃", "tab\tand\nnewline", "%s{}\\x41", "\uef80", " "]


@pytest.mark.parametrize("name", ODD_IDS)
def test_odd_characters_in_session_ids(home: Home, interstat: Interstat, daemon: Daemon, name: str) -> None:
    folded = fold(name.encode())
    by_session = started(home, id="by-session", session=folded)
    by_bead = started(home, id="by-bead", scope=folded)
    interstat.insert(name, input_tokens=5, output_tokens=5)
    interstat.insert("another", bead_id=name, input_tokens=70, output_tokens=0)
    assert home.ok("remaining", "--session", name) == str(250_000 - 10)
    assert home.ok("remaining", "--scope", name) == str(250_000 - 70)
    assert (home.spent(by_session), home.spent(by_bead)) == (10, 70)


def test_invalid_utf_8_in_session_ids(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Ids that differ only in an invalid byte are two sessions, from the command line to the total."""
    insert = (
        "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens) "
        "VALUES ('2026-01-01T00:00:00Z', {}, CAST(x'fe' AS TEXT), ?, 0)"
    )
    interstat.connection.execute(insert.format("CAST(x'61ff' AS TEXT)"), (11,))
    interstat.connection.execute(insert.format("CAST(x'61fe' AS TEXT)"), (500,))
    interstat.connection.execute(insert.format("x'61ff'"), (2,))
    run = home.ctl("run", "start", "--whole", "--session", b"a\xff").stdout.strip()
    assert home.spent(run) == 13
    assert home.ctl("remaining", "--session", os.fsdecode(b"a\xff")).stdout == f"{250_000 - 13}\n"
    shown = home.ctl("run", "show", "--run", run)
    assert (shown.returncode, "a\\xff" in shown.stdout) == (0, True), shown


@pytest.mark.parametrize(
    ("columns", "billing", "total", "anomalies"),
    [
        ({"input_tokens": "many", "output_tokens": 5}, 5, 5, 1),
        ({"input_tokens": -7, "output_tokens": 5}, 5, 5, 1),
        ({"input_tokens": 1.5, "output_tokens": 5}, 5, 5, 1),
        ({"input_tokens": b"\x01", "output_tokens": 5}, 5, 5, 1),
        ({"input_tokens": "12", "output_tokens": 5}, 17, 17, 0),  # SQLite itself converts it
        ({"input_tokens": 3, "output_tokens": None}, 3, 3, 0),
        ({"input_tokens": 3, "output_tokens": 4, "cache_read_tokens": -1, "cache_creation_tokens": 10}, 7, 17, 1),
        ({"input_tokens": 3, "output_tokens": 4, "cache_read_tokens": "x", "cache_creation_tokens": "y"}, 7, 7, 2),
    ],
)
def test_invalid_counts_are_dropped(
    home: Home, interstat: Interstat, daemon: Daemon, columns: dict[str, Any], billing: int, total: int, anomalies: int
) -> None:
    """They are reported as anomalies; the row's other counts stay."""
    run = started(home, session="s1")
    interstat.insert("s1", **columns)
    shown = home.json("run", "show", "--run", run)
    assert (shown["totals"]["billing"], shown["totals"]["total"]) == (billing, total)
    assert home.json("status")["sources"][0]["anomalies"] == anomalies


def test_huge_sums_stop_at_the_largest_number_of_the_protocol(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, token_budget=2**63 - 1, session="s1")
    for _ in range(3):
        interstat.insert("s1", input_tokens=2**63 - 1, output_tokens=2**63 - 1)
    assert home.spent(run) == messages.MAX_TOKENS
    assert home.ok("remaining", "--run", run) == "0"


@pytest.mark.parametrize(
    "timestamp", ["", "yesterday", None, 12, b"\xff", "9999-99-99T00:00:00Z", "0001-01-01T00:00:00Z"]
)
def test_row_with_an_invalid_time_counts(home: Home, tmp_path: Path, timestamp: Any) -> None:
    schema = OLD_SCHEMA.replace("timestamp TEXT NOT NULL", "timestamp TEXT")
    interstat = Interstat(home.interstat, schema)
    home.start()
    run = started(home, session="s1", whole=True)
    interstat.insert("s1", timestamp=timestamp, input_tokens=9, output_tokens=1)
    assert home.spent(run) == 10
    interstat.close()


def test_file_without_the_optional_columns(home: Home) -> None:
    """Sessions count; missing columns are noted, and used as soon as they are added."""
    interstat = Interstat(home.interstat, OLD_SCHEMA)
    home.start()
    run = started(home, scope="b1", session="s1")
    interstat.insert("s1", input_tokens=9, output_tokens=1)
    assert home.spent(run) == 10
    source, _ = home.json("status")["sources"]
    assert source["state"] == "ok"
    assert source["notes"] == [
        "no column cache_read_tokens",
        "no column cache_creation_tokens",
        "no column bead_id",
        "no column phase",
        "no column total_tokens",
    ]
    assert home.json("estimates")["estimates"] == {}
    for column in ("cache_read_tokens INTEGER", "cache_creation_tokens INTEGER", "bead_id TEXT", "phase TEXT"):
        interstat.connection.execute(f"ALTER TABLE agent_runs ADD COLUMN {column}")
    interstat.insert("elsewhere", input_tokens=5, output_tokens=0, bead_id="b1")
    assert home.spent(run) == 15
    interstat.close()


def test_bead_attaches_the_whole_session(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A row with the run's bead attaches its session, and the session's rows without a bead count, too."""
    run = started(home, scope="b1")
    interstat.insert("s1", "main-session", input_tokens=1000, output_tokens=0)
    assert home.spent(run) == 0
    interstat.insert("s1", bead_id="b1", phase="planned")
    assert home.spent(run) == 1000
    assert home.ok("remaining", "--session", "s1") == str(250_000 - 1000)
    (attachment,) = home.json("run", "show", "--run", run)["attachments"]
    assert (attachment["session"], attachment["origin"], attachment["since"]) == ("s1", "bead", None)


def test_session_is_found_by_its_bead_at_the_first_request(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    started(home, scope="b1")
    interstat.insert("s1", bead_id="b1", input_tokens=40, output_tokens=2)
    assert home.ok("remaining", "--session", "s1") == str(250_000 - 42)


def test_bead_takes_precedence_over_the_attachment(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A row with a run's bead belongs to that run, wherever its session is attached."""
    one, two = started(home, scope="b1"), started(home, scope="b2", session="s1")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    interstat.insert("s1", bead_id="b1", input_tokens=10, output_tokens=0)
    interstat.insert("s1", bead_id="unknown", input_tokens=100, output_tokens=0)
    assert (home.spent(one), home.spent(two)) == (10, 101)


def test_session_that_moves_between_runs(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A later attachment begins when it is made and ends the previous one. Older usage than the run is not counted."""
    long_ago = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    interstat.insert("s1", timestamp=long_ago, input_tokens=1, output_tokens=0)
    one, two = started(home, id="one"), started(home, id="two")
    home.ok("run", "attach", "--run", one, "--session", "s1")
    interstat.insert("s1", timestamp=stamp(), input_tokens=10, output_tokens=0)
    home.ok("run", "attach", "--run", two, "--session", "s1")
    interstat.insert("s1", timestamp=stamp(), input_tokens=100, output_tokens=0)
    interstat.insert("s1", timestamp=long_ago, input_tokens=1000, output_tokens=0)
    assert (home.spent(one), home.spent(two)) == (10, 100)
    home.ok("run", "detach", "--session", "s1")
    interstat.insert("s1", timestamp=stamp(), input_tokens=10_000, output_tokens=0)
    assert (home.spent(one), home.spent(two)) == (10, 100)
    assert home.json("status")["unattributed"] == {"sessions": 1, "billing": 10_000, "total": 10_000}
    home.ok("run", "attach", "--run", one, "--session", "s1")
    interstat.insert("s1", timestamp=stamp(), input_tokens=100_000, output_tokens=0)
    assert (home.spent(one), home.spent(two)) == (100_010, 100)
    shown = home.json("run", "show", "--run", one), home.json("run", "show", "--run", two)
    assert [run["earlier"]["billing"] for run in shown] == [1001, 0]
    home.ok("run", "attach", "--run", one, "--session", "s1", "--whole")
    assert (home.spent(one), home.spent(two)) == (111_011, 100)


def test_session_attached_by_its_bead_is_moved(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Its attachment by the bead remains the first one."""
    one, two = started(home, id="one", scope="b1"), started(home, id="two")
    interstat.insert("s1", bead_id="b1", input_tokens=1, output_tokens=0)
    interstat.insert("s1", input_tokens=10, output_tokens=0)
    home.ok("run", "attach", "--run", two, "--session", "s1")
    interstat.insert("s1", input_tokens=100, output_tokens=0)
    assert (home.spent(one), home.spent(two)) == (11, 100)


def test_scope_that_is_used_again(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Rows belong to the run of their time; rows older than both runs belong to the first."""
    interstat.insert("s0", timestamp="2026-01-01T00:00:00Z", bead_id="b1", input_tokens=1, output_tokens=0)
    one = started(home, scope="b1")
    interstat.insert("s1", bead_id="b1", input_tokens=10, output_tokens=0)
    home.ok("run", "finish", "--run", one)
    two = started(home, scope="b1")
    assert one != two
    interstat.insert("s2", bead_id="b1", input_tokens=100, output_tokens=0)
    assert (home.spent(one), home.spent(two)) == (11, 100)


def test_two_runs_with_different_cost_bases(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    billing = started(home, session="s1", cost_basis="billing", token_budget=1000)
    total = started(home, session="s2", cost_basis="total", token_budget=1000)
    for session in ("s1", "s2"):
        interstat.insert(
            session, input_tokens=1, output_tokens=20, cache_read_tokens=300, cache_creation_tokens=400, total_tokens=9
        )
    assert home.ok("remaining", "--run", billing) == "979"
    assert home.ok("remaining", "--run", total) == "279"


def test_finished_run_still_counts_late_rows(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    row = interstat.insert("s1")
    home.ok("run", "finish", "--run", run)
    interstat.update(row, input_tokens=400, output_tokens=2)
    assert home.spent(run) == 402


def test_unattributed_usage_is_counted(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    interstat.insert("unattached", input_tokens=5, output_tokens=6, cache_read_tokens=100)
    interstat.insert("unattached", bead_id="no-run", input_tokens=1, output_tokens=0)
    interstat.insert("other", input_tokens=2**62, output_tokens=2**62)
    started(home, session="s1")
    interstat.insert("s1", input_tokens=1000, output_tokens=0)
    found = home.json("status")["unattributed"]
    assert found == {"sessions": 2, "billing": messages.MAX_TOKENS, "total": messages.MAX_TOKENS}
    interstat.connection.execute("DELETE FROM agent_runs WHERE session_id = 'other'")
    assert home.json("status")["unattributed"] == {"sessions": 1, "billing": 12, "total": 112}
    assert "unattributed: 12 billing tokens in 1 sessions" in home.ok("status")


def test_breakdowns_add_up_to_the_total(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every record is in exactly one phase, macro-stage, agent, model and session."""
    run = started(home, scope="b1", session="s1", phases=("planned", "executing", "my-own"))
    interstat.insert("s1", "fd-a", model="opus", phase="executing", input_tokens=1, output_tokens=2)
    interstat.insert("s2", "fd-b", model="sonnet", phase="my-own", bead_id="b1", input_tokens=10, output_tokens=20)
    interstat.insert("s2", "fd-a", model="opus", phase="not-of-this-run", input_tokens=100, output_tokens=200)
    interstat.insert("s2", "fd-c", bead_id="b1")
    shown = home.json("run", "show", "--run", run)
    assert shown["totals"]["billing"] == 333
    assert shown["totals"]["pending"] == 1
    for part in ("by_phase", "by_stage", "by_agent", "by_model", "by_session"):
        assert sum(one["billing"] for one in shown[part]) == 333, part
        assert sum(one["records"] for one in shown[part]) == 4, part
    assert {one["name"]: one["billing"] for one in shown["by_phase"]} == {"planned": 300, "executing": 3, "my-own": 30}
    assert {one["name"]: one["billing"] for one in shown["by_stage"]} == {"design": 300, "build": 3, "other": 30}


def test_commit_that_moves_a_session_is_in_the_next_answer(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    started(home, id="one", scope="b1", token_budget=1000)
    started(home, id="two", scope="b2", token_budget=2000)
    interstat.insert("s1", timestamp="2026-01-02T00:00:00Z", bead_id="b1", input_tokens=1, output_tokens=0)
    assert home.json("remaining", "--session", "s1")["run"] == "one"
    interstat.insert("s1", timestamp="2026-01-01T00:00:00Z", bead_id="b2", input_tokens=1, output_tokens=0)
    assert home.json("remaining", "--session", "s1")["run"] == "two"


def test_session_of_a_refused_request_is_found_by_a_later_run(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    started(home, id="one", token_budget=1000)
    interstat.insert("s1", bead_id="b1", input_tokens=10, output_tokens=0)
    assert home.ctl("run", "start", "--id", "one", "--budget", "999", "--session", "s1").returncode == 65
    started(home, id="two", scope="b1", token_budget=500)
    assert home.ok("remaining", "--session", "s1") == "490"
