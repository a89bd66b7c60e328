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
HOSTILE: list[Callable[[Path], None]] = [
    text(f"a: [{'[],' * 349_000}]"),  # 1 MiB
    text(f"a: [{'[],' * 21_000}]"),
    text("[" * 65_000),
    text(f"a: [&l0 [x]{LEVELS}]\nexempt_agents: *l39"),  # a "billion laughs"
    text(f"exempt_agents: [&a {'x' * 30_000}{', *a' * 8000}]"),
    text(f"budgets: {{{','.join(f'{number}: 1' for number in range(7000))}}}"),
    os.mkfifo,
    link_to_zeros,
]


def hostile_run(home: Home, number: int) -> Claude:
    """Start a run in a project with a malicious file; return its session."""
    project = home.root / f"hostile-{number}"
    (project / ".claude").mkdir(parents=True)
    HOSTILE[number](project / ".claude" / "flux-drive-budget.yaml")
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
    if number in (1, 5):  # large, but correct
        assert isinstance(answer, messages.EstimatesAnswer)
    else:
        assert isinstance(answer, messages.ErrorAnswer)
        assert answer.error.code == "bad_config"
        assert "flux-drive-budget.yaml: " in answer.error.message
    assert isinstance(home.ask(messages.Estimates(project_dir=str(home.project))), messages.EstimatesAnswer)
