"""flux-drive's budget files are parsed once per change, by a process with limits, and do not delay one another."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from fluxbudgetd.config import budget_files, yaml_process
from fluxbudgetd.config.budget_files import BudgetFile, BudgetFiles
from fluxbudgetd.config.flux_drive import KEYS, LARGEST_OF_PROJECT, ReviewBudget, laid_over, load_review_budget
from fluxbudgetd.config.locations import ClaudeDirectories
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.config.yaml_process import WorkerError, parse
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.wire import messages
from harness.daemon import PATIENCE
from harness.service import service_over, within

CONTENTS = [
    "", "~", "budgets: {plan: 0x10, own: 9}\nexempt_agents: [a, interflux:b]\nother: !x [1]", "slicing_multiplier: 1",
    "reaction_budget: {fraction: , min_agents: 7}", "base: &b {plan: 5}\nbudgets: {<<: *b, spec: 7}",
    f"budgets: {{plan: {2**63 - 1}}}", f"budgets: {{plan: {2**63}}}", f"budgets: {{plan: {'9' * 5000}}}",
    "budgets: {plan: 2026-13-45}", "budgets: &b {plan: *b}", "budgets: !!set {plan}", "budgets: {plan: [1]}",
    "slicing_multiplier: .nan", "slicing_multiplier: -.inf", "exempt_agents: [a, ~]", 'exempt_agents: ["\\ud800"]',
    "[1]", "a: *b", "!!python/tuple [1]", "a: b\n\x1b: d", "enforcement: \xfc",
]  # fmt: skip


def project_file(project: Path, content: str) -> Path:
    path = project / ".claude" / "flux-drive-budget.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def at(path: Path) -> BudgetFile:
    return BudgetFile(str(path), lambda: str(path), LARGEST_OF_PROJECT)


def outcome(load: Callable[[], ReviewBudget]) -> tuple[object, ...]:
    try:
        return (load(),)
    except ConfigError as exc:
        return exc.message, exc.hint


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings(
        str(tmp_path / "config.toml"), required=False, claude_dirs=ClaudeDirectories(default=(str(tmp_path / "c"),))
    )
    found.load_first()
    return found


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the path of each file that is parsed."""
    paths: list[str] = []

    def recorded(text: str, path: str, keys: frozenset[str]) -> dict[str, object]:
        paths.append(path)
        return parse(text, path, keys)

    monkeypatch.setattr(budget_files, "parse", recorded)
    return paths


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  a thread fulfils it
            await anyio.sleep(0.01)


# --- the process


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: repr(content)[:30])
def test_worker_gives_what_the_daemon_would_find(tmp_path: Path, content: str) -> None:
    """Its values give the same rules, or the same error."""
    path = tmp_path / "budget.yaml"
    path.write_text(content)
    expected = outcome(lambda: load_review_budget(str(path), None))
    assert outcome(lambda: laid_over(ReviewBudget(), parse(content, str(path), KEYS), str(path))) == expected


def test_worker_has_little_memory() -> None:
    """A mebibyte of the smallest nodes needs more than its limit. The daemon needs none for them."""
    with pytest.raises(WorkerError, match="it cannot be parsed with 96 MiB of memory and 4 s of CPU time"):
        parse(f"a: [{'[],' * 340_000}]", "x.yaml", KEYS)


def test_values_that_aliases_make_long_are_refused() -> None:
    name = "x" * 30_000
    with pytest.raises(WorkerError):
        parse(f"exempt_agents: [&a {name}{', *a' * 5000}]", "x.yaml", KEYS)


def test_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_process, "_PROGRAM", "import time\ntime.sleep(600)")
    monkeypatch.setattr(yaml_process, "_SECONDS", 0.1)
    with pytest.raises(WorkerError):
        parse("a: 1", "x.yaml", KEYS)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_worker_that_floods_its_output_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_process, "_PROGRAM", "while True: print('x' * 9999)")
    with pytest.raises(WorkerError):
        parse("a: 1", "x.yaml", KEYS)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    "answer",
    ["", "{", "5", "null", "[1]", '{"values": 5}', '{"values": {"a": {"b": 1}}}', '{"error": [1]}', "[" * 9999],
)
def test_answer_that_makes_no_sense_is_an_error(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(yaml_process, "_PROGRAM", f"print({answer!r}, end='')")
    with pytest.raises(WorkerError):
        parse("a: 1", "x.yaml", KEYS)


def test_python_that_is_gone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WorkerError, match="the process that parses it cannot be started: No such file or directory"):
        parse("a: 1", "x.yaml", KEYS)


def test_worker_imports_little() -> None:
    script = """
import json, sys
sys.argv[1:] = [str(1 << 30), "9", "x.yaml", "budgets"]
from fluxbudgetd.config.yaml_worker import main
main()
print()
print(json.dumps(sorted(sys.modules)))
"""
    arguments = [sys.executable, "-I", "-S", "-c", f"import sys\nsys.path[:] = {sys.path!r}{script}"]
    done = subprocess.run(arguments, input=b"budgets: {plan: 5}", capture_output=True, check=True)
    answer, loaded = map(json.loads, done.stdout.splitlines())
    assert answer == {"values": {"budgets": {"map": {"plan": 5}}}}
    ours = {name for name in loaded if name.startswith(("fluxbudgetd.", "msgspec", "anyio", "asyncio", "structlog"))}
    config = {f"fluxbudgetd.config.{name}" for name in ("shown", "yaml_nodes", "yaml_values", "yaml_worker")}
    assert ours == {"fluxbudgetd.config", "fluxbudgetd.errors", "fluxbudgetd.wire", "fluxbudgetd.wire.text", *config}


def test_daemon_does_not_import_pyyaml() -> None:
    script = "import fluxbudgetd.app, sys; print({'yaml', '_yaml'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"set()\n"


# --- the files


def test_file_is_parsed_once_until_it_changes(tmp_path: Path, settings: Settings, parsed: list[str]) -> None:
    """This holds however many requests need it, and whether it is good or broken."""
    project = tmp_path / "project"
    path = project_file(project, "min_agents: 3\n")

    async def ask(found: list[int]) -> None:
        try:
            found.append((await settings.review_budget(str(project))).min_agents)
        except ConfigError:
            found.append(-1)

    async def body() -> None:
        for content, expected in (("min_agents: 3\n", 3), ("min_agents: [\n", -1), ("min_agents: 4\n", 4)):
            path.write_text(content)
            found: list[int] = []
            for _ in range(3):
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(ask, found)
                path.touch()
            assert found == [expected] * 30
            assert parsed == [str(path)]
            parsed.clear()
            assert settings.last_review_budget(str(project)).min_agents == (expected if expected > 0 else 3)

    anyio.run(body)
    settings.close()


def test_request_sees_what_was_written_before_it(tmp_path: Path) -> None:
    """This holds even if a check is under way, because that may have read the file before."""
    path = tmp_path / "budget.yaml"
    path.write_text("min_agents: 1")
    begun, proceed = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert proceed.wait(PATIENCE)
        return str(path)

    async def body() -> None:
        files = BudgetFiles()
        file = BudgetFile("slow", slow, LARGEST_OF_PROJECT)
        files.prepare(file)
        assert await anyio.to_thread.run_sync(begun.wait, PATIENCE)
        begun.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(files.content, file)
            await anyio.wait_all_tasks_blocked()
            proceed.set()
        assert begun.is_set()
        assert (await files.content(file)).values == {"min_agents": 1}
        files.close()

    anyio.run(body)


def test_file_that_hangs_delays_no_other_file(tmp_path: Path) -> None:
    """It keeps one thread, however often it is needed, and is there as soon as its file system answers."""
    path = tmp_path / "budget.yaml"
    path.write_text("min_agents: 5")
    proceed = threading.Event()

    def hanging() -> str:
        assert proceed.wait(PATIENCE)
        return str(path)

    async def body() -> None:
        files = BudgetFiles()
        file = BudgetFile("hanging", hanging, LARGEST_OF_PROJECT)
        for _ in range(40):
            with anyio.move_on_after(0.001):
                await files.content(file)
        assert (await files.content(at(path))).values == {"min_agents": 5}
        proceed.set()
        assert (await files.content(file)).values == {"min_agents": 5}
        files.close()

    anyio.run(body)


def test_checks_that_no_thread_has_begun_end_with_the_daemon(tmp_path: Path) -> None:
    """No error reaches the log, although more files hang than there are threads."""
    failures: list[object] = []
    resume = threading.Event()

    def hanging() -> None:
        resume.wait()

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
        files = BudgetFiles()
        for number in range(20):
            files.prepare(BudgetFile(number, hanging, LARGEST_OF_PROJECT))
        files.close()
        await anyio.lowlevel.checkpoint()
        resume.set()
        await anyio.wait_all_tasks_blocked()

    try:
        anyio.run(body)
    finally:
        resume.set()
    assert failures == []


def test_prepared_file_is_parsed_before_it_is_needed(tmp_path: Path, settings: Settings, parsed: list[str]) -> None:
    project = tmp_path / "project"
    path = project_file(project, "min_agents: 6\n")

    async def body() -> None:
        for _ in range(3):
            settings.prepare_review_budget(str(project))
        await until(lambda: bool(parsed))
        assert (await settings.review_budget(str(project))).min_agents == 6
        assert parsed == [str(path)]

    anyio.run(body)
    settings.close()


@pytest.mark.parametrize("event", ["SessionStart", "UserPromptSubmit", "PostToolBatch"])
def test_sessions_event_has_the_files_parsed_before_a_launch(tmp_path: Path, parsed: list[str], event: str) -> None:
    """After a restart of the daemon, the session's next event does."""
    project = tmp_path / "project"
    path = project_file(project, "min_agents: 6\n")
    hook_input = {"hook_event_name": event, "session_id": "s1", "cwd": str(project), "source": "startup"}
    hints = messages.Hints(cwd=str(project))
    request = messages.Hook(input=json.dumps(hook_input).encode(), hints=hints, wait_ms=60_000)

    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            await service.lifecycle.start(messages.RunStart(project_dir=str(project)), within(60))
            context = Context(service=service, state_dir=str(tmp_path), started_at=0, connections=lambda: 0)
            answer = handle(context, request, os.getpid())
            assert isinstance(answer, Awaitable)
            await answer
            await until(lambda: parsed == [str(path)])
            await service.settings.review_budget(str(project))
            assert parsed == [str(path)]
            service.settings.close()

    anyio.run(body)


def test_only_the_files_used_last_are_remembered(
    tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_files, "_MOST_FILES", 2)
    paths = [tmp_path / f"{number}.yaml" for number in range(3)]
    for path in paths:
        path.write_text("min_agents: 1")

    async def body() -> None:
        files = BudgetFiles()
        for number in (0, 1, 0, 2, 0, 1):
            assert (await files.content(at(paths[number]))).values
        files.close()

    anyio.run(body)
    assert [Path(path).stem for path in parsed] == ["0", "1", "2", "1"]


def test_file_is_parsed_again_after_a_while_if_the_worker_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text("min_agents: 1")
    executable = sys.executable
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    async def body() -> None:
        files = BudgetFiles()
        with pytest.raises(ConfigError):
            await files.content(at(path))
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(ConfigError):
            await files.content(at(path))
        monkeypatch.setattr(budget_files, "_RETRY_SECONDS", 0.0)
        path.write_text("min_agents: 2")
        assert (await files.content(at(path))).values == {"min_agents": 2}
        files.close()

    anyio.run(body)


def test_projects_file_has_at_most_64_kib(tmp_path: Path) -> None:
    path = project_file(tmp_path, "#" * LARGEST_OF_PROJECT)
    assert load_review_budget(None, str(tmp_path)).files == (str(path),)
    path.write_text("#" * (LARGEST_OF_PROJECT + 1))
    with pytest.raises(ConfigError, match="it is larger than 64 KiB; allowed: at most 64 KiB"):
        load_review_budget(None, str(tmp_path))
