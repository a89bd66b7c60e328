"""Clavain's functions and the `clavain-cli` wrapper in real shells: what each prints, and its exit code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.config.schema import RunDefaults
from fluxbudgetd.policy import phases
from harness.daemon import Daemon, Home, started
from harness.interstat import Interstat
from harness.shells import INIT, LIBRARY, Ended, Shell

SHELLS = ("bash", "zsh")
TOKENS: dict[str, Any] = {
    "input_tokens": 15_000,
    "output_tokens": 10_000,
    "cache_read_tokens": 400,
    "cache_creation_tokens": 70,
}
#: Beads that shells could take for something else.
HOSTILE = (
    "a b",
    "$(touch pwned)",
    "`touch pwned`",
    "x'; touch pwned; '",
    'x"y',
    "*",
    "-n",
    "--help",
    "a\nb",
    "é=ü",
    "%s%n\\",
)


@pytest.fixture(params=SHELLS)
def shell(home: Home, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(home, request.param, tmp_path_factory)


@pytest.fixture
def sprint(home: Home, interstat: Interstat, daemon: Daemon) -> Iterator[str]:
    """Start runs: `b-1` has used 25 000 of 100 000, `b-spent` all of it, `b-free` has no budget."""
    for bead, budget, used in (("b-1", 100_000, 1), ("b-spent", 40_000, 2), ("b-free", "none", 1)):
        started(home, id=f"run-{bead}", scope=bead, session=f"s-{bead}", token_budget=budget)
        for _ in range(used):
            interstat.insert(f"s-{bead}", **TOKENS, phase="executing")
    yield "b-1"
    assert not (home.project / "pwned").exists()


def test_budget(shell: Shell, sprint: str) -> None:
    """0 means that there is no budget, or none is known. An exhausted one prints 1: callers take 0 for "no limit"."""
    script = 'for bead in b-1 b-spent b-free none ""; do echo $(%s "$bead"); done'
    for function, values in (
        ("sprint_budget_remaining", ["75000", "1", "0", "0", "0"]),
        ("clavain-cli sprint-budget-remaining", ["75000", "1", "0", "0", "0"]),
        ("sprint_budget_total", ["100000", "40000", "0", "0", "0"]),
        ("clavain-cli budget-total", ["100000", "40000", "0", "0", "0"]),
    ):
        assert shell.lines(script % function) == values, function


def test_stages(shell: Shell, sprint: str) -> None:
    """A review's stage is that of the phase that it reviews; anything else is the whole budget."""
    stages = "discover design build ship reflect plan-review quality-gates other"
    script = f'for stage in {stages}; do echo $(%s b-1 "$stage"); done'
    budgets = [10_000, 25_000, 40_000, 20_000, 5_000, 25_000, 20_000, 100_000]
    spent = [0, 0, 25_000, 0, 0, 0, 0, 25_000]
    left = [10_000, 25_000, 15_000, 20_000, 5_000, 25_000, 20_000, 75_000]
    for function, values in (
        ("sprint_budget_stage", budgets),
        ("sprint_stage_tokens_spent", spent),
        ("sprint_budget_stage_remaining", left),
    ):
        verb = f"clavain-cli {function.replace('_', '-')}"
        expected = [str(value) for value in values]
        assert shell.lines(script % function) == expected, function
        assert shell.lines(script % verb) == expected, verb


def test_stages_of_other_runs(shell: Shell, sprint: str) -> None:
    """Unknown is 0. A stage may not use more than the run has left, and a depleted one has 1 left."""
    script = """
    for bead in b-spent b-free none ""; do
        echo $(sprint_budget_stage "$bead" build) $(sprint_stage_tokens_spent "$bead" build) \\
            $(sprint_budget_stage_remaining "$bead" build) $(sprint_budget_stage_remaining "$bead" design)
    done"""
    assert shell.lines(script) == ["16000 50000 1 1", "0 25000 0 0", "0 0 0 0", "0 0 0 0"]


def test_stage_check(shell: Shell, sprint: str) -> None:
    script = 'rc=0; %s "$1" "$2" || rc=$?; echo $rc'
    depleted = "budget_exceeded|quality-gates|stage budget depleted\n"
    for function in ("sprint_budget_stage_check", "clavain-cli sprint-budget-stage-check"):
        assert shell.run(script % function, "b-spent", "quality-gates") == Ended(0, "1\n", depleted)
        for bead in ("b-1", "b-free", "none", ""):
            assert shell.run(script % function, bead, "quality-gates") == Ended(0, "0\n")


def test_record_requests_a_sync(shell: Shell, sprint: str) -> None:
    """It prints nothing and never fails, even if the sync does."""
    program = shell.bin / "fluxbudgetctl"
    shell.program("recorded", program.read_text().removeprefix("#!/bin/sh\n"))
    shell.program(
        "fluxbudgetctl",
        'case "$1" in sync) echo "$@" >>"$CLAVAIN_STATE/calls"; echo out; exit 69 ;; esac; exec recorded "$@"',
    )
    assert (
        shell.lines("sprint_record_phase_tokens b-1 planned; clavain-cli sprint-record-phase-tokens b-1 planned") == []
    )
    assert (shell.state / "calls").read_text().splitlines() == ["sync --scope=b-1 --timeout=60"] * 2
    assert shell.lines("sprint_record_phase_tokens; sprint_record_phase_tokens ''") == []


def test_advance(shell: Shell, sprint: str) -> None:
    """A refusal is one line, with exit 1; otherwise upstream's output and exit code are unchanged."""
    shell.program("ic", "exit 0")
    shell.program("clavain-cli", 'printf "real <%s>\\n" "$@"; exit 5')
    init = f". '{LIBRARY}'\n{INIT}"
    environ = {"LIB_RUN": "run-b-1"}
    for function in ("sprint_advance", "clavain-cli sprint-advance"):
        refused = shell.run(f"{function} b-spent planned", environ=environ, init=init)
        assert refused == Ended(1, "budget_exceeded|brainstorm|50000/40000 billing tokens\n")
    passed = shell.run("sprint_advance b-1 planned 'a b.md'", environ=environ, init=init)
    assert passed == Ended(0, "Phase: planned -> next [a b.md]\n", "advancing b-1\n")
    failed = shell.run("sprint_advance b-1 planned", environ={**environ, "LIB_ADVANCE_CODE": "3"}, init=init)
    assert (failed.code, failed.out) == (3, "Phase: planned -> next []\n")
    real = "real <sprint-advance>\nreal <b-1>\nreal <planned>\nreal <a b.md>\n"
    assert shell.run("clavain-cli sprint-advance b-1 planned 'a b.md'", init=init) == Ended(5, real)
    assert shell.run("sprint_advance b-1 planned 'a b.md'") == Ended(5, real)
    overridden = shell.run(
        "sprint_advance b-spent planned", environ={**environ, "CLAVAIN_SKIP_BUDGET": "must ship"}, init=init
    )
    assert (overridden.code, overridden.out) == (0, "Phase: planned -> next []\n")


def test_advance_without_clavain(shell: Shell, sprint: str) -> None:
    """Without the library and the program, fluxbudget moves the run."""
    assert shell.lines("sprint_advance b-1 brainstorm") == []
    stale = "stale_phase|brainstorm|Phase already advanced to brainstorm-reviewed\n"
    assert shell.run("sprint_advance b-1 brainstorm") == Ended(1, stale)
    assert shell.run("sprint_advance none brainstorm") == Ended(1, "")
    assert shell.run("sprint_advance") == Ended(1, "")


@pytest.mark.parametrize(
    "state",
    [
        '{"id":"b-1","token_budget":7,"tokens_spent":8,"phase":"planned"}',
        '{"id":"b-1","tokens_spent":null,"token_budget":"7"}',
        '{\n  "id": "b-1",\n  "token_budget": 7,\n  "tokens_spent": 0\n}',
        '{"goal":"\\"token_budget\\":1, $(touch pwned) `x` \\\\","plan":"a}b","token_budget":7,"tokens_spent":0}',
        '{"id":"b-1"}', "{}", "{ }",
    ],
)  # fmt: skip
def test_read_state(shell: Shell, sprint: str, state: str) -> None:
    """The budget and what was spent, with its provisional part, are ours; everything else is upstream's."""
    (shell.state / "state.json").write_text(state)
    shell.program("clavain-cli", 'cat "$CLAVAIN_STATE/state.json"')
    expected = {**json.loads(state), "token_budget": 100_000, "tokens_spent": 25_000}
    for script in ("sprint_read_state b-1", "clavain-cli sprint-read-state b-1"):
        ended = shell.run(script, init=f". '{LIBRARY}'\n{INIT}")
        assert (ended.code, ended.err, json.loads(ended.out)) == (0, "", expected)
    assert json.loads(shell.run("sprint_read_state b-1").out) == expected
    assert json.loads(shell.run("sprint_read_state none").out) == json.loads(state)
    free = json.loads(shell.run("sprint_read_state b-free").out)
    assert (free["token_budget"], free["tokens_spent"]) == (0, 25_000)


def test_defaults_and_estimates(shell: Shell, sprint: str, home: Home) -> None:
    """They are those of the configuration and, for phases, of calibrations."""
    (home.project / ".clavain").mkdir()
    theirs = {"phases": {"planned": {"runs": 3, "input_tokens": 60, "output_tokens": 6}}}
    (home.project / ".clavain" / "phase-cost-calibration.json").write_text(json.dumps(theirs))
    script = 'for value in "$@"; do echo $(%s "$value"); done'
    complexities = ("1", "2", "3", "4", "5", "6", "0", "", "many")
    budgets = shell.lines(script % "_sprint_default_budget", *complexities)
    assert budgets == ["50000", "100000", "250000", "500000", "1000000", "1000000", "1000000", "250000", "1000000"]
    assert shell.lines("_sprint_default_budget") == ["250000"]
    costs = shell.lines(script % "_sprint_phase_cost_estimate", "brainstorm", "planned", "executing", "x", "")
    assert costs == ["30000", "66", "150000", "30000", "30000"]
    names = (*RunDefaults().phases, "strategy-reviewed", "review", "polish", "goal-formed")
    stages = shell.lines(script % "_sprint_phase_to_stage", *names, "x", "")
    assert stages == [*(phases.macro_stage(name) for name in names), "unknown", "unknown"]


def test_run_create(shell: Shell, home: Home, tmp_path: Path) -> None:
    """`ic` is run in the project's directory, with every value as an argument of its own."""
    project = tmp_path / "other $(touch pwned)"
    project.mkdir()
    shell.program("ic", 'printf "%s\\n" "$@" >"$CLAVAIN_STATE/words"; pwd >"$CLAVAIN_STATE/cwd"; echo ab12cd34')
    goal = 'it\'s "x"; $(touch pwned)'
    script = 'intercore_run_create "$@"'
    assert shell.lines(script, str(project), goal, '["a","b"]', "b 1", "4", "70000") == ["ab12cd34"]
    assert (shell.state / "cwd").read_text() == f"{project}\n"
    assert (shell.state / "words").read_text().splitlines() == [
        *("run", "create", f"--project={project}", f"--goal={goal}", "--complexity=4", "--budget-warn-pct=80"),
        *('--phases=["a","b"]', "--scope-id=b 1", "--token-budget=70000"),
    ]
    assert shell.lines(script, str(project), "g", environ={"CDPATH": "/"}) == ["ab12cd34"]
    assert (shell.state / "words").read_text().splitlines() == [
        *("run", "create", f"--project={project}", "--goal=g", "--complexity=3", "--budget-warn-pct=80")
    ]
    # `ic` takes a relative path from its own directory.
    assert shell.lines(f"cd '{project.parent}'; {script}", project.name, "g") == ["ab12cd34"]
    assert (shell.state / "words").read_text().splitlines()[2] == f"--project={project}"
    for failing in ("echo ab12cd34; exit 2", "exit 0", "echo 'no such table'"):
        shell.program("ic", f"echo noise >&2\n{failing}")
        assert shell.run(script, str(project), "g") == Ended(1, ""), failing
    (shell.bin / "ic").unlink()
    assert shell.run(script, str(project), "g") == Ended(1, "")
    assert shell.run(script, str(project / "absent"), "g") == Ended(1, "")
    assert not (home.project / "pwned").exists()


def test_run_budget(shell: Shell, sprint: str, home: Home) -> None:
    """The exit code is 1 as long as the budget is exceeded. Unknown runs, and errors, are not exceeded."""
    script = 'rc=0; intercore_run_budget "$1" || rc=$?; echo "$rc"'

    def shown(run: str) -> tuple[object, int]:
        *text, code = shell.lines(script, run)
        return json.loads("".join(text)) if text else None, int(code)

    within = {"budget": 100_000, "used": 25_000, "warn_pct": 80, "usage_pct": 25.0, "warning": False, "exceeded": False}
    assert shown("run-b-1") == ({"run_id": "run-b-1", **within}, 0)
    beyond = {"budget": 40_000, "used": 50_000, "warn_pct": 80, "usage_pct": 125.0, "warning": True, "exceeded": True}
    for _ in range(2):
        assert shown("run-b-spent") == ({"run_id": "run-b-spent", **beyond}, 1)
    home.ok("run", "set", "--run", "run-b-1", "--warn-pct", "20")
    assert shown("run-b-1") == ({"run_id": "run-b-1", **within, "warn_pct": 20, "warning": True}, 0)
    free = {"budget": None, "used": 25_000, "warn_pct": 80, "usage_pct": 0, "warning": False, "exceeded": False}
    assert shown("run-b-free") == ({"run_id": "run-b-free", **free}, 0)
    assert shown("none") == ({"run_id": "none", **free, "used": 0}, 0)
    assert shown('x"y') == (None, 0)


def test_run_tokens(shell: Shell, sprint: str) -> None:
    lines = shell.lines('for run in run-b-1 none "x y" ""; do intercore_run_tokens "$run"; done')
    measured = {"input_tokens": 15_000, "output_tokens": 10_000, "cache_hits": 400, "total_tokens": 25_000}
    assert [json.loads(line) for line in lines] == [
        {"run_id": "run-b-1", **measured},
        {"run_id": "none", **dict.fromkeys(measured, 0)},
    ]


def test_agents_tokens(shell: Shell, sprint: str, interstat: Interstat) -> None:
    """Nothing is printed without rows, and no mean of fewer than three."""
    script = 'query_agent_tokens "$1" "$2"; query_avg_tokens "$2"; query_avg_tokens "$2" "$3"'
    session = "s'1\" -- $(touch pwned)"
    for number in range(3):
        interstat.insert(session, "fd-x y", **TOKENS, total_tokens=26_000, model="m 1")
        shown = [json.loads(line) for line in shell.lines(script, session, "fd-x y", "m 1")]
        used = {"billing_tokens": 25_000, "total_tokens": 25_470, "cache_read": 400}
        sums = {"agent_name": "fd-x y", **{name: value * (number + 1) for name, value in used.items()}}
        mean = {"est_tokens": 26_000, "est_billing": 25_000, "sample_size": 3, "source": "interstat"}
        assert shown == [[sums], *([[{"agent_name": "fd-x y", **mean}]] if number == 2 else [])]
    assert (
        shell.lines(
            'query_agent_tokens; query_agent_tokens s; query_agent_tokens none x; query_avg_tokens; query_avg_tokens ""'
        )
        == []
    )


def test_other_verbs_are_the_programs(shell: Shell, sprint: str) -> None:
    """The real `clavain-cli` gets them as they are, with stdin, and its exit code counts."""
    shell.program("clavain-cli", 'printf "<%s>" "$@"; cat; echo wrong >&2; exit 7')
    ended = shell.run("clavain-cli 'sprint create' -x '' \"a  b\"", stdin="in")
    assert ended == Ended(7, "<sprint create><-x><><a  b>in", "wrong\n")
    assert shell.run("clavain-cli").out == "<>"
    (shell.bin / "clavain-cli").unlink()
    assert shell.run("clavain-cli other").code == 127


def test_hostile_names(shell: Shell, sprint: str, home: Home) -> None:
    """They are found exactly as written, and never executed."""
    for number, bead in enumerate(HOSTILE):
        started(home, scope=bead, token_budget=1000 + number, project=home.root)
    script = 'for bead in "$@"; do echo $(sprint_budget_remaining "$bead") $(sprint_budget_total "$bead"); done'
    assert shell.lines(script, *HOSTILE) == [f"{1000 + number} {1000 + number}" for number in range(len(HOSTILE))]
    unknown = b"\xff\xfe not UTF-8"
    assert shell.lines(script, unknown, "x" * 100_000) == ["0 0", "0 0"]
    every = """
    for name in "$@"; do
        for function in sprint_budget_stage sprint_stage_tokens_spent sprint_budget_stage_remaining; do
            echo $($function "$name" "$name")
        done
        sprint_budget_stage_check "$name" "$name"; sprint_record_phase_tokens "$name" "$name"
        _sprint_default_budget "$name"; _sprint_phase_cost_estimate "$name"; _sprint_phase_to_stage "$name"
        intercore_run_budget "$name"; intercore_run_tokens "$name"
        query_agent_tokens "$name" "$name"; query_avg_tokens "$name" "$name"; sprint_read_state "$name"
    done"""
    assert len(shell.lines(every, "$(touch pwned)", "--help", "*")) == 3 * 7
    assert not (home.project / "pwned").exists()


def test_exhausted_sprint_in_an_unusual_shell(shell: Shell, sprint: str) -> None:
    """Options that people set do not matter, nor does stdin or a loop that reads it."""
    options = {
        "bash": "shopt -s nullglob failglob extglob nocasematch inherit_errexit; IFS=0; CDPATH=/tmp",
        "zsh": "setopt sh_word_split ksh_arrays extended_glob no_match null_glob warn_create_global err_return; IFS=0",
    }
    loop = 'while read -r bead; do sprint_budget_remaining "$bead"; sprint_budget_stage "$bead" build; done'
    ended = shell.run(f"{options[shell.name]}\n{loop}", stdin="b-1\nb-spent\n")
    assert ended == Ended(0, "75000\n40000\n1\n16000\n")
