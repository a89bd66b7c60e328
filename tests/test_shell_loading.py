"""Loading Clavain's functions: in which shells, twice, without a daemon; and the exports of the SessionStart hook."""

import shutil
from typing import Any

import pytest

from harness.daemon import Daemon, Home, started, wait_for
from harness.events import configure
from harness.hooks import Claude
from harness.interstat import Interstat
from harness.shells import INIT, LIBRARY, Ended, Shell

SHELLS = ("bash", "zsh")
TOKENS: dict[str, Any] = {"input_tokens": 15_000, "output_tokens": 10_000}
#: Every function with valid arguments, and what it prints if nothing is known.
UNKNOWN = {
    "sprint_budget_remaining b-1": "0",
    "sprint_budget_total b-1": "0",
    "sprint_budget_stage b-1 build": "0",
    "sprint_stage_tokens_spent b-1 build": "0",
    "sprint_budget_stage_remaining b-1 build": "0",
    "sprint_budget_stage_check b-1 build": "",
    "sprint_record_phase_tokens b-1 planned": "",
    "sprint_read_state b-1": "{}",
    "_sprint_default_budget 4": "500000",
    "_sprint_default_budget": "250000",
    "_sprint_phase_cost_estimate plan-reviewed": "50000",
    "_sprint_phase_cost_estimate x": "30000",
    "_sprint_phase_to_stage planned": "design",
    "intercore_run_budget r1": '{"run_id":"r1","budget":null,"used":0,"warn_pct":80,"usage_pct":0,'
    '"warning":false,"exceeded":false}',
    "intercore_run_tokens r1": '{"run_id":"r1","input_tokens":0,"output_tokens":0,"cache_hits":0,"total_tokens":0}',
    "query_agent_tokens s1 fd-quality": "",
    "query_avg_tokens fd-quality": "",
}


@pytest.fixture(params=SHELLS)
def shell(home: Home, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(home, request.param, tmp_path_factory)


@pytest.mark.parametrize("is_installed", [True, False])
def test_without_a_daemon(shell: Shell, is_installed: bool) -> None:
    """Every function prints what callers take for "unknown", without errors, so the sprint goes on."""
    init = INIT if is_installed else f". '{functions(shell)}'"
    if not is_installed:
        (shell.bin / "fluxbudgetctl").unlink()
    script = "\n".join(f"{call}; echo ." for call in UNKNOWN)
    printed = "".join(f"{text}\n.\n" if text else ".\n" for text in UNKNOWN.values())
    ended = shell.run(script, environ={"FLUXBUDGET_TIMEOUT": "1"}, init=init)
    assert ended == Ended(0, printed)
    advanced = shell.run("sprint_advance b-1 planned", environ={"LIB_RUN": "r1"}, init=f". '{LIBRARY}'\n{init}")
    assert (advanced.code, advanced.out) == (0, "Phase: planned -> next []\n")


def functions(shell: Shell) -> str:
    """Return the path of the file with the functions, which `shell-init` names."""
    code = shell.run("fluxbudgetctl shell-init", init="").out
    return code.split("    . '", 1)[1].split("'", 1)[0]


def test_debugging(shell: Shell) -> None:
    """$FLUXBUDGET_DEBUG shows why there is no answer."""
    ended = shell.run("sprint_budget_remaining b-1", environ={"FLUXBUDGET_DEBUG": "1"})
    assert (ended.code, ended.out) == (0, "0\n")
    assert "fluxbudgetctl: " in ended.err


def test_wrong_time_limit(shell: Shell) -> None:
    """The usual one applies. Otherwise a typing error would be as good as no budget."""
    init = f". '{functions(shell)}'"
    shell.program("fluxbudgetctl", 'for last; do :; done; echo "$last"')
    for given in ("2s", "0", "0.0", ".", "1.2.3", "-1", "99999", ""):
        lines = shell.lines("_fluxbudget remaining", environ={"FLUXBUDGET_TIMEOUT": given}, init=init)
        assert lines == ["--timeout=2"], given
    for given in ("5", "0.25", "3600"):
        lines = shell.lines("_fluxbudget remaining", environ={"FLUXBUDGET_TIMEOUT": given}, init=init)
        assert lines == [f"--timeout={given}"]


def test_state_file(shell: Shell, home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """If the socket cannot be opened, the daemon's state file has the run's numbers, but not its stages."""
    for bead, budget in (("b-1", 100_000), ("b-spent", 25_000)):
        run = started(home, scope=bead, session=f"s-{bead}", token_budget=budget, project=home.root)
        interstat.insert(f"s-{bead}", **TOKENS)
        assert home.spent(run) == 25_000
    home.socket.unlink()
    home.socket.mkdir()
    script = """
    for bead in b-1 b-spent; do
        echo $(sprint_budget_remaining $bead) $(sprint_budget_total $bead) $(sprint_budget_stage_remaining $bead build)
    done
    sprint_read_state b-1
    sprint_advance b-spent brainstorm"""
    ended = shell.run(script)
    refusal = "budget_exceeded|brainstorm|25000/25000 billing tokens"
    state = '{"token_budget":100000,"tokens_spent":25000}'
    assert ended == Ended(1, f"75000 100000 75000\n1 25000 1\n{state}\n{refusal}\n")


def test_loaded_twice(shell: Shell) -> None:
    """Upstream's functions are saved, not ours; if the library is loaded again, its newer functions are."""
    call = "sprint_advance b-1 planned 2>&1"
    for init in (f". '{LIBRARY}'\n{INIT}\n{INIT}", f". '{LIBRARY}'\n{INIT}\n. '{LIBRARY}'\n{INIT}\n{INIT}"):
        lines = shell.lines(call, environ={"LIB_RUN": "r1"}, init=init)
        assert lines == ["Phase: planned -> next []", "advancing b-1"]
    newer = f". '{LIBRARY}'\n{INIT}\nsprint_advance() {{ echo newer; }}\n{INIT}"
    assert shell.lines(call, init=newer) == ["newer"]
    assert shell.run(call, init=f"{INIT}\n{INIT}") == Ended(1, "")


def test_loading_changes_nothing_else(shell: Shell) -> None:
    """Neither options, variables nor positional parameters; and nothing is printed."""
    look = "set -o | cat; set -- a 'b c'"
    before = shell.run(f"{look}\necho $# $*", init="")
    after = shell.run(f"{look}\n{INIT}\necho $# $*\n", init=INIT)
    assert (after.code, after.err) == (0, "")
    assert after.out == before.out


def test_functions_in_a_script_of_bash(home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A separate process has the functions if its caller exports them, like any function of bash."""
    shell = Shell(home, "bash", tmp_path_factory)
    names = "$(compgen -A function | grep -E 'fluxbudget|^sprint_|^clavain-cli$')"
    script = "bash -c 'clavain-cli budget-total b-1'"
    assert shell.run(script).code == 127
    assert shell.lines(f"export -f {names}\n{script}") == ["0"]


def test_posix_mode(shell: Shell) -> None:
    """As sh, which some systems have it as, the shell has all functions, and stays in that mode."""
    called = "bash --posix" if shell.name == "bash" else "zsh --emulate sh -f"
    look = "set -o | grep -i posix"
    call = "clavain-cli budget-total b-1; sprint_advance b-1 planned 2>&1"
    text = f"set -eu; . '{LIBRARY}'; {look}; echo .; {INIT}; {INIT}; {look}; echo .; {call}"
    lines = shell.lines(f'exec {called} -c "$1"', text, init="", environ={"LIB_RUN": "r1"})
    before, after, printed = "\n".join(lines).split("\n.\n")
    assert before == after
    assert printed == "0\nPhase: planned -> next []\nadvancing b-1"


def test_alias_of_the_program(shell: Shell) -> None:
    """It would break the definition of our function in zsh, and hide it in bash, where aliases count."""
    expand = "shopt -s expand_aliases" if shell.name == "bash" else ":"
    script = shell.home.root / "script"
    script.write_text(f"{expand}\nalias clavain-cli='echo theirs'\n{INIT}\n{INIT}\nclavain-cli budget-total b-1\n")
    assert shell.lines(f". '{script}'", init="") == ["0"]


@pytest.mark.skipif(shutil.which("dash") is None, reason="dash is not installed")
def test_other_shells_are_refused(home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One line on stderr; the script goes on."""
    shell = Shell(home, "dash", tmp_path_factory)
    ended = shell.run(f"set -eu\n{INIT}\necho goes on")
    refusal = "fluxbudgetctl shell-init: the functions need bash 4 or later, or zsh\n"
    assert ended == Ended(0, "goes on\n", refusal)


# --- a session's start


def exported(home: Home, session: str = "s1") -> str:
    """Return what the SessionStart hook appends to `$CLAUDE_ENV_FILE`."""
    place = home.root / f"env-{session}"
    place.write_text("")
    Claude(home, session).run("SessionStart", environ={"CLAUDE_ENV_FILE": str(place)}, source="startup")
    return place.read_text()


def test_session_start_exports_the_budget(home: Home, daemon: Daemon) -> None:
    """Nothing is exported for a run without a budget, or without a run."""
    assert exported(home) == ""
    run = started(home, token_budget=100_000)
    assert exported(home) == f"export FLUXBUDGET_RUN={run}\nexport INTERSTAT_TOKEN_BUDGET=100000\n"
    home.ok("run", "set", "--run", run, "--budget", "none")
    assert exported(home, "s2") == f"export FLUXBUDGET_RUN={run}\n"


def test_session_start_loads_the_functions(shell: Shell, home: Home, daemon: Daemon) -> None:
    """If the configuration says so, with or without a run. A file that was removed meanwhile is no error."""
    configure(home, "[clavain]\nshell = true")
    text = wait_for(lambda: exported(home), "the new configuration")
    started(home, scope="b-1", token_budget=100_000)
    (home.root / "env-file").write_text(exported(home))
    init = f". '{home.root / 'env-file'}'"
    assert shell.lines("clavain-cli budget-total b-1", init=init) == ["100000"]
    assert text.count("\n") == 1
    assert f". '{functions(shell)}'" in text
    if shutil.which("dash"):
        assert shell.lines(f'dash -eu -c "{init}; echo on"', init="") == ["on"], "other shells go on without them"
    (home.root / "env-file").write_text(text.replace("clavain.sh", "removed.sh"))
    assert shell.lines("echo on", init=init) == ["on"]
