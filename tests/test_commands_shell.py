"""The commands that Clavain's shell functions call: `numbers`, `tokens` and `defaults`."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from harness.commands import Outcome, is_mine, outcome
from harness.configuration import CALIBRATION
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import read_state_file
from harness.interstat import Interstat
from harness.native import both_clients

TOKENS: dict[str, Any] = {
    "input_tokens": 150,
    "output_tokens": 100,
    "cache_read_tokens": 40,
    "cache_creation_tokens": 7,
}


def numbers(home: Home, *words: str) -> dict[str, str]:
    shown = outcome(home, "numbers", *words)
    assert shown.exit == 0, shown
    return dict(line.split("=", 1) for line in shown.out.splitlines())


def test_numbers_of_a_run(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every number that a shell function prints, including the estimates of completed phases."""
    run = started(home, scope="b-1", session="s1", token_budget=100_000)
    home.ok("advance", "--run", run, "--from", "brainstorm")
    shown = numbers(home, "--scope", "b-1")
    assert (shown["spent"], shown["discover_spent"], shown["remaining"]) == ("30000", "30000", "70000")
    interstat.insert("s1", **TOKENS, phase="executing")
    shown = numbers(home, "--run", run)
    assert shown == {
        "run": run,
        "phase": "brainstorm-reviewed",
        "budget": "100000",
        "spent": "250",
        "reserved": "0",
        "remaining": "99750",
        "pct": "0.2",
        "state": "ok",
        "warn_pct": "80",
        "input": "150",
        "output": "100",
        "cache_read": "40",
        "cache_creation": "7",
        "discover_budget": "10000",
        "discover_spent": "0",
        "design_budget": "25000",
        "design_spent": "0",
        "build_budget": "40000",
        "build_spent": "250",
        "ship_budget": "20000",
        "ship_spent": "0",
        "reflect_budget": "5000",
        "reflect_spent": "0",
        "done_budget": "",
        "done_spent": "0",
    }
    as_json = json.loads(outcome(home, "numbers", "--run", run, "--json").out)
    assert {name: "" if value is None else str(value) for name, value in as_json.items()} == shown
    home.ok("run", "set", "--run", run, "--budget", "none")
    shown = numbers(home, "--run", run)
    assert [shown[name] for name in ("budget", "remaining", "pct", "build_budget", "state")] == [""] * 4 + ["unlimited"]
    assert outcome(home, "numbers", "--run", "no-such").exit == 3


def test_tokens_of_a_session(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The sums of its agents, under the name that was asked for; nothing for what has not been measured."""
    for agent, tokens in (
        ("fd-quality", TOKENS),
        ("interflux:fd-quality", TOKENS),
        ("fd-safety", {}),
        ("main", TOKENS),
    ):
        interstat.insert('it\'s "s1"', agent, **tokens)

    def shown(*words: str) -> Any:
        found = outcome(home, "tokens", "--session", 'it\'s "s1"', *words)
        assert (found.exit, found.err) == (0, "")
        return json.loads(found.out) if found.out else None

    both = {"billing_tokens": 500, "total_tokens": 594, "cache_read": 80}
    one = {"billing_tokens": 250, "total_tokens": 297, "cache_read": 40}
    assert shown() == [{"agent_name": "fd-quality", **both}, {"agent_name": "main", **one}]
    for agent in ("fd-quality", "interflux:fd-quality"):
        assert shown("--agent", agent) == [{"agent_name": agent, **both}]
    assert shown("--agent", "fd-safety") is None
    assert shown("--agent", "x' OR '1'='1") is None
    assert outcome(home, "tokens", "--session", "unknown") == Outcome(0)


def test_mean_tokens_of_an_agent(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """As in flux-drive's own estimator: rows of the model and rows without one, at least three."""
    for number, model in enumerate(("claude-opus-4-6", "claude-opus-4-6", None, "other", "other")):
        interstat.insert("s", "fd-quality", **TOKENS, total_tokens=300 + number, model=model)

    def shown(*words: str) -> str:
        found = outcome(home, "tokens", *words)
        assert (found.exit, found.err) == (0, "")
        return found.out

    mean = {"agent_name": "fd-quality", "est_tokens": 301, "est_billing": 250, "sample_size": 3, "source": "interstat"}
    assert json.loads(shown("--agent", "fd-quality")) == [mean]
    assert json.loads(shown("--agent", "fd-quality", "--model", "claude-opus-4-6")) == [mean]
    other = json.loads(shown("--agent", "fd-quality", "--model=other"))
    assert [(line["sample_size"], line["est_tokens"]) for line in other] == [(3, 303)]
    assert shown("--agent", "fd-quality", "--model", "claude-haiku") == ""
    assert shown("--agent", "fd-safety") == ""


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ("", 250_000), ("--complexity 1", 50_000), ("--complexity=2", 100_000), ("--complexity 4", 500_000),
        ("--complexity 5", 1_000_000), ("--complexity 0", 1_000_000), ("--complexity 77", 1_000_000),
        ("--phase brainstorm", 30_000), ("--phase=executing", 150_000), ("--phase polish", 30_000),
    ],
)  # fmt: skip
def test_defaults(home: Home, daemon: Daemon, words: str, tokens: int) -> None:
    assert outcome(home, "defaults", *words.split()) == Outcome(0, f"{tokens}\n")


def test_defaults_are_those_of_the_configuration(home: Home, daemon: Daemon) -> None:
    """Budgets and estimates come from config.toml, estimates first from calibrations: ours, then the project's."""

    def shown(phase: str, env: Mapping[str, str] | None = None) -> tuple[int, str, int]:
        found = outcome(home, "defaults", "--phase", phase, "--json", cwd=home.root, env=env)
        return tuple(json.loads(found.out).values())

    directory = home.root / ".config" / "fluxbudget"
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text("[runs.budgets]\n2 = 7\n[phases.estimates]\npolish = 8\n")
    assert outcome(home, "defaults", "--complexity", "2").out == "7\n"
    assert shown("polish") == (8, "table", 0)
    (directory / "calibration.json").write_text(json.dumps(CALIBRATION))
    assert shown("executing") == (2, "calibration", 3)
    theirs = {"polish": {"runs": 4, "input_tokens": 90, "output_tokens": 9}}
    (home.project / ".clavain").mkdir()
    (home.project / ".clavain" / "phase-cost-calibration.json").write_text(json.dumps({"phases": theirs}))
    assert shown("polish") == (8, "table", 0), "this directory is not the project"
    started(home, scope="b-1")
    assert shown("polish", {"CLAVAIN_BEAD_ID": "b-1"}) == (99, "calibration", 4)


@pytest.mark.parametrize(
    "words",
    [
        "defaults --complexity two", "defaults --complexity", "defaults --run r1", "tokens --run r1", "tokens --agent",
        "numbers --agent a", "tokens", "tokens --model m", "defaults --complexity 2 --phase p",
        "defaults --complexity 99999999999999999999",
    ],
)  # fmt: skip
def test_command_lines_that_are_left_to_the_client(home: Home, daemon: Daemon, words: str) -> None:
    assert not is_mine(home, *words.split())


@both_clients
def test_commands_of_the_client(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Plain command lines and unusual ones have the same answers; mistakes have the usual exit codes."""
    run = started(home, scope="-odd 'bead'", session="-s", token_budget=100_000)
    interstat.insert("-s", "-agent", **TOKENS)
    patient = ("--timeout", "60")
    assert f"run={run}\n" in home.ctl("numbers", "--scope=-odd 'bead'", *patient).stdout
    used = [{"agent_name": "-agent", "billing_tokens": 250, "total_tokens": 297, "cache_read": 40}]
    assert json.loads(home.ctl("tokens", "--session=-s", "--agent=-agent", *patient).stdout) == used
    assert home.ctl("defaults", "--complexity=-1", *patient).stdout == "1000000\n"
    for words, code in (
        (("defaults", "--complexity", "two"), 64),
        (("defaults", "--complexity", "2", "--phase", "p"), 64),
        (("tokens",), 64),
        (("numbers", "--run", "no-such"), 3),
    ):
        result = home.ctl(*words, *patient)
        assert (result.returncode, result.stdout) == (code, ""), result


def test_numbers_without_a_socket(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The state file has the numbers of the whole run."""
    run = started(home, scope="b-1", session="s1", token_budget=1000)
    interstat.insert("s1", **TOKENS)
    assert home.spent(run) == 250
    wait_for(lambda: (read_state_file(home, "scopes", "b-1") or {}).get("spent") == "250", "the state file")
    home.socket.rename(home.socket.with_name("elsewhere"))
    result = home.ctl("numbers", "--scope", "b-1", "--timeout", "60")
    assert result.returncode == 0, result
    known = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert known == {
        "run": run,
        "phase": "brainstorm",
        "budget": "1000",
        "spent": "250",
        "reserved": "0",
        "remaining": "750",
        "pct": "25.0",
        "state": "ok",
    }
