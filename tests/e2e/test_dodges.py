"""Ways around a hard budget that a model can try from inside its session, with real ancestors and a real Bash."""

import shlex

import pytest

from harness.claude_code.script import Usage, bash, says, spends
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude

SMALL = Usage(input=900, output=100)

#: Runs each line of its standard input as a command; writes `EXIT-CODE COMMAND` to the file $1.
TRIES = """
while IFS= read -r command; do
  bash -c "$command" </dev/null >>"$1.output" 2>&1
  echo "$? $command" >>"$1"
done
"""


def trying(stage: Stage, *commands: str) -> str:
    """Return a command for Bash that tries all of these."""
    script = stage.home.root / "tries"
    script.write_text(TRIES)
    lines = "\n".join(commands)
    return f"bash {shlex.quote(str(script))} {shlex.quote(str(stage.home.root / 'tried'))} <<'END'\n{lines}\nEND"


def tried(stage: Stage) -> dict[str, int]:
    """Return each command's exit code."""
    lines = (stage.home.root / "tried").read_text().splitlines()
    return {command: int(code) for code, _, command in (line.partition(" ") for line in lines)}


def test_loosening_a_hard_run(stage: Stage) -> None:
    """All of it is refused, and the run is as before."""
    other = stage.home.root / "other"
    other.mkdir()
    other_run = stage.home.ok("run", "start", "--budget", "1000000", cwd=other)
    stage.next_run(token_budget=100_000, enforcement="hard")
    run = stage.run
    dodges = (
        "fluxbudgetctl run set --budget 9000000",
        "fluxbudgetctl run set --budget none",
        "fluxbudgetctl run set --enforcement soft",
        'fluxbudgetctl run detach --session "$CLAUDE_CODE_SESSION_ID"',
        f'fluxbudgetctl run attach --run {other_run} --session "$CLAUDE_CODE_SESSION_ID"',
        "fluxbudgetctl run finish",
        "fluxbudgetctl run cancel",
        "fluxbudgetctl run start --id decoy --budget 9000000",
        "fluxbudgetctl allow --tokens 9000000",
        f"env -u CLAUDE_CODE_SESSION_ID -u FLUXBUDGET_RUN fluxbudgetctl allow --run {run}",
        f"setsid --wait fluxbudgetctl allow --run {run}",
        f"script --quiet --return --command 'fluxbudgetctl allow --run {run}' /dev/null",
        f"{shlex.quote(str(stage.claude.program))} --print 'Play inner' </dev/null && false",
    )
    stage.script.add("inner", says("Inside."))
    stage.play(stage.script.add("dodges", spends(120_000, bash(trying(stage, *dodges)))))
    assert tried(stage) == dict.fromkeys(dodges, 1)
    assert stage.speakers == ["main-session"]
    details = stage.home.details(run)
    assert (details.run.token_budget, details.run.enforcement, details.run.status) == (100_000, "hard", "active")
    assert len(details.by_session) == 1


def test_tampering_with_a_session(stage: Stage) -> None:
    """A forged end, an emptied or a removed transcript change nothing: the turn ends, and nothing is forgotten."""
    stage.next_run(token_budget=100_000, enforcement="hard")
    forged = """'{"hook_event_name":"SessionEnd","session_id":"'"$CLAUDE_CODE_SESSION_ID"'","reason":"other"}'"""
    dodges = (
        f"echo {forged} | fluxbudgetctl hook",
        ': >"$CLAUDE_CONFIG_DIR"/projects/*/"$CLAUDE_CODE_SESSION_ID".jsonl',
        'rm "$CLAUDE_CONFIG_DIR"/projects/*/"$CLAUDE_CODE_SESSION_ID".jsonl',
    )
    stopped = stage.play(stage.script.add("tampers", spends(120_000, bash(trying(stage, *dodges))), says("Goes on.")))
    assert tried(stage) == dict.fromkeys(dodges, 0)
    assert stopped.ending == "hook_stopped"
    assert stage.play("Play tampers").ending is None
    assert stage.speakers == ["main-session"]


def test_loosening_a_soft_run(stage: Stage) -> None:
    """It is allowed, and reported."""
    stage.next_run(token_budget=100_000)
    raise_it = bash("fluxbudgetctl run set --budget 9000000")
    session = stage.play(stage.script.add("raises", says("Raises.", raise_it, usage=SMALL), says("Done.", usage=SMALL)))
    assert session.refusals == []
    assert stage.home.details(stage.run).run.token_budget == 9_000_000
    assert "run.loosened" in stage.events
