"""docs/ci.md: its commands are run, in their order, in a home without systemd."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness.daemon import CTL, DAEMON, PATIENCE, Home
from harness.transcripts import Transcript

DOCUMENT = (Path(__file__).parents[1] / "docs" / "ci.md").read_text()
#: The document's commands by the heading above them.
STEPS = {
    heading: "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for heading, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
}
#: Calls its first hook, as Claude Code does with the settings that it is given, and writes what it has used.
CLAUDE = """#!/bin/sh
test "$3" = --settings && grep -q '"SessionStart"' "$4" || exit 2
printf '{"hook_event_name":"SessionStart","source":"startup","session_id":"s1","transcript_path":"%s","cwd":"%s"}' \\
  "$TRANSCRIPT" "$PWD" | fluxbudgetctl hook --timeout 20 >/dev/null
sed "s/@NOW@/$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)/" "$USED" >"$TRANSCRIPT"
"""


class Job:
    """A job of a pipeline: what is on its PATH, and how it runs steps."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._bin = home.root / "bin"
        self._bin.mkdir()
        for name, command in (("fluxbudgetctl", CTL), ("fluxbudgetd", DAEMON)):
            self._add(name, f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        self._add("claude", CLAUDE)
        self._transcript = home.root / "claude" / "projects" / "-project" / "s1.jsonl"
        self._transcript.parent.mkdir(parents=True)

    def uses(self, tokens: int) -> None:
        """Have `claude` use so many tokens."""
        Transcript(Path(), "s1", path=self.home.root / "used.jsonl").response(
            "m1", tokens=(tokens, 0, 0, 0), at="@NOW@"
        )

    def run(self, *steps: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run steps as one script. Its daemon ends with it."""
        environ = {
            **self.home.environ,
            "PATH": f"{self._bin}:{self.home.environ['PATH']}",
            "TRANSCRIPT": str(self._transcript),
            "USED": str(self.home.root / "used.jsonl"),
            "BUILD_ID": "7",
            "TASK": "Do it.",
            **variables,
        }
        return subprocess.run(
            ["bash", "-eu", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{''.join(steps)}"],
            cwd=self.home.project,
            env=environ,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def _add(self, name: str, text: str) -> None:
        program = self._bin / name
        program.write_text(text)
        program.chmod(0o755)


@pytest.fixture
def job(home: Home) -> Job:
    return Job(home)


def test_job_within_its_budget_succeeds(job: Job) -> None:
    job.uses(150_000)
    result = job.run(*STEPS.values())
    assert result.returncode == 0, result
    assert "50000 tokens left" in result.stdout
    assert '"spent": 150000' in (job.home.project / "fluxbudget.json").read_text()


def test_job_over_its_budget_fails(job: Job) -> None:
    job.uses(200_000)
    result = job.run(*STEPS.values())
    assert result.returncode == 1, result
    assert result.stdout.endswith("\nbudget_exceeded|brainstorm|200000/200000 billing tokens\n")


START, GATES = STEPS["Start the daemon"], STEPS["Fail the job"]
CHECK, REMAINING = GATES.split("\n", 1)


def test_other_exit_codes_fail_the_job(job: Job) -> None:
    """No run: 1 with `--require`, 3 for the number. No daemon: 69. A stopped daemon: 75."""
    assert (job.run(START, CHECK).returncode, "no run, or no budget" in job.run(START, REMAINING).stderr) == (1, True)
    assert job.run(START, "fluxbudgetctl remaining --timeout 30").returncode == 3
    assert job.run(CHECK).returncode == 69
    assert "not reachable" in job.run(REMAINING).stderr
    hurried = CHECK.replace("--timeout 30", "--timeout 0.5")
    stopped = 'kill -STOP "$FLUXBUDGETD"\n' + f"status=0; {hurried} || status=$?\n"
    assert job.run(START, stopped, 'kill -CONT "$FLUXBUDGETD"; exit "$status"').returncode == 75
