"""A malicious budget file in one project affects no other project's runs."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, started
from harness.hooks import SILENT, Claude, HookOutput, write_usage

LAUNCHES = 60


def text(content: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_text(content)

    return make


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


LEVELS = "".join(f", &l{level} [{f'*l{level - 1}, ' * 9}]" for level in range(1, 40))
#: How a malicious file is made, and what its own project is told; nothing if it is large but correct.
HOSTILE: list[tuple[Callable[[Path], None], str]] = [
    (text(f"a: [{'[],' * 349_000}]"), "it is larger than 64 KiB"),  # 1 MiB
    (text(f"a: [{'[],' * 21_000}]"), ""),
    (text("[" * 65_000), "line 1, column 65: nested deeper than 64 levels"),
    (text(f"a: [&l0 [x]{LEVELS}]\nexempt_agents: *l39"), "exempt_agents[0] is a list"),  # a "billion laughs"
    (text(f"exempt_agents: [&a {'x' * 30_000}{', *a' * 8000}]"), "it cannot be parsed with 96 MiB"),
    (text(f"budgets: {{{','.join(f'a{number}: 1' for number in range(6000))}}}"), ""),
    (os.mkfifo, "it is not a regular file"),
    (link_to_zeros, "it is not a regular file"),
]


def hostile_run(home: Home, number: int) -> Claude:
    """Start a run in a project with a malicious file; return its session."""
    project = home.root / f"hostile-{number}"
    (project / ".claude").mkdir(parents=True)
    make, _ = HOSTILE[number]
    make(project / ".claude" / "flux-drive-budget.yaml")
    session = f"hostile-{number}"
    answer = home.ask(messages.RunStart(project_dir=str(project), session=session, token_budget=1_000_000))
    assert isinstance(answer, messages.RunAnswer), answer
    return Claude(home, session, cwd=project)


def peak_mebibytes(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def test_launches_are_denied_next_to_hostile_projects(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000, enforcement="hard")
    write_usage(home, 1200)
    hostile = [hostile_run(home, number) for number in range(len(HOSTILE))]
    before = peak_mebibytes(daemon)

    def launch(number: int) -> HookOutput:
        if number % 4 == 0:
            hostile[number // 4 % len(hostile)].launch()
        return Claude(home).launch()

    with ThreadPoolExecutor(12) as pool:
        decisions = [output.decision for output in pool.map(launch, range(LAUNCHES))]
    assert decisions == ["deny"] * LAUNCHES
    assert peak_mebibytes(daemon) - before < 50
    # Their own launches are admitted by the built-in estimates, or what is valid in the file.
    assert [claude.launch() for claude in hostile] == [SILENT] * len(hostile)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_file_is_reported_to_its_own_project(home: Home, daemon: Daemon, number: int) -> None:
    claude = hostile_run(home, number)
    answer = home.ask(messages.Estimates(project_dir=str(claude.cwd)))
    _, problem = HOSTILE[number]
    if problem:
        assert isinstance(answer, messages.ErrorAnswer)
        assert answer.error.code == "bad_config"
        assert f"flux-drive-budget.yaml: {problem}" in answer.error.message
    else:
        assert isinstance(answer, messages.EstimatesAnswer)
    assert isinstance(home.ask(messages.Estimates(project_dir=str(home.project))), messages.EstimatesAnswer)
