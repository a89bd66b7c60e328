"""Reading and writing labels with a real program: what it prints, and every way in which it can fail."""

import os
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from fluxbudgetd.model import Bead
from fluxbudgetd.sources.beads import BeadsError, BeadsSource
from fluxbudgetd.sources.beads.labels import bead_of, is_bead_id, labels_of
from harness.beads import BeadsProject
from harness.daemon import wait_for
from harness.privilege import OBEDIENT, needs_root

T = TypeVar("T")
#: Longer than the stand-in takes, also on a busy machine.
PATIENCE = 60.0


@pytest.fixture
def beads(tmp_path: Path) -> BeadsProject:
    return BeadsProject(tmp_path / "project", tmp_path / "bin")


def source(beads: BeadsProject, seconds: float = PATIENCE, environ: Mapping[str, str] | None = None) -> BeadsSource:
    path = f"{beads.program.parent}:{os.environ['PATH']}"
    return BeadsSource({**os.environ, "PATH": path, **(environ or {})}, seconds)


def call(function: Callable[[], Awaitable[T]]) -> T:
    async def called() -> T:
        return await function()

    return anyio.run(called)


def read(beads: BeadsProject, name: str) -> Bead | None:
    return call(lambda: source(beads).read(name, str(beads.project)))


def failure_of(beads: BeadsProject, seconds: float = PATIENCE, path: str | None = None) -> tuple[str, str]:
    """Return the state and the detail after a call that fails."""
    failing = source(beads, seconds) if path is None else source(beads, seconds, {"PATH": path})
    with pytest.raises(BeadsError):
        call(lambda: failing.read("b-1", str(beads.project)))
    [report] = failing.reports
    assert report.status.hint
    assert report.status.detail.isprintable()
    assert report.status.path == str(beads.place)
    return report.status.state, report.status.detail


def test_all_labels_are_read_in_one_call(beads: BeadsProject) -> None:
    beads.put("b-1.2", "token_budget:120000", "complexity:4", "phase:planned", "ic_run_id:abcd1234", "sprint", "x:y:z")
    assert read(beads, "b-1.2") == Bead(id="b-1.2", token_budget=120_000, complexity=4, phase="planned", run="abcd1234")
    assert beads.commands == ["--json state list b-1.2"]


def test_bead_without_labels_and_unknown_bead(beads: BeadsProject) -> None:
    beads.put("b-1")
    assert read(beads, "b-1") == Bead(id="b-1")
    assert read(beads, "b-2") is None
    beads.behave("null")
    assert read(beads, "b-1") == Bead(id="b-1")


@pytest.mark.parametrize(
    ("label", "budget"),
    [("0", 0), ("", 0), ("1", 1), (str(2**63 - 1), 2**63 - 1), (str(2**63), None), ("-5", None), ("1e6", None)],
)
def test_token_budget(beads: BeadsProject, label: str, budget: int | None) -> None:
    beads.put("b-1", f"token_budget:{label}")
    found = read(beads, "b-1")
    assert found is not None
    assert (found.token_budget, bool(found.faults)) == (budget, budget is None)


@pytest.mark.parametrize(
    ("label", "complexity"), [("1", 1), ("5", 5), ("0", 5), ("9", 5), ("-1", 5), ("hard", 5), ("", None)]
)
def test_complexity(beads: BeadsProject, label: str, complexity: int | None) -> None:
    beads.put("b-1", f"complexity:{label}")
    found = read(beads, "b-1")
    assert found is not None
    assert found.complexity == complexity


def test_faults_are_notes_and_on_one_line(beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:many\nmore", "phase:a|b", "ic_run_id:a b")
    reader = source(beads)
    assert call(lambda: reader.read("b-1", str(beads.project))) == Bead(
        id="b-1",
        faults=(
            'token_budget "many\\nmore" is not a whole number of tokens and is ignored',
            'phase "a|b" is not a name and is ignored',
            'ic_run_id "a b" is not a name and is ignored',
        ),
    )
    assert reader.reports[0].status.is_readable
    assert len(reader.reports[0].status.notes) == 3


@pytest.mark.parametrize("name", ["--help", "-1", "", "a b", "a/../b", "a\n", "x" * 200, "é"])
def test_what_is_no_id_is_never_passed_to_the_program(beads: BeadsProject, name: str) -> None:
    assert not is_bead_id(name)
    assert read(beads, name) is None
    call(lambda: source(beads).put_spent(name, str(beads.project), 5))
    assert beads.calls == []


def test_answer_about_another_bead_does_not_count(beads: BeadsProject) -> None:
    """`bd` accepts prefixes of ids, so it may mean another bead."""
    beads.put("b-1", "token_budget:5")
    beads.behave("lie")
    assert read(beads, "b-1") is None


@pytest.mark.parametrize(
    "output", [b"", b"[]", b"{}", b"null", b'{"issue_id":1}', b'{"issue_id":"b","states":[]}', b"[" * 100_000, b"\xff"]
)
def test_unexpected_json(output: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        bead_of(output, "b")


@pytest.mark.parametrize(
    ("output", "labels"),
    [(b"null", []), (b"[]", []), (b'["a","b:c",1,null]', ["a", "b:c"]), (b'{"labels":["a"]}', ["a"])],
)
def test_list_of_labels(output: bytes, labels: list[str]) -> None:
    assert labels_of(output) == labels


def test_environment_names_no_other_database(beads: BeadsProject) -> None:
    beads.put("b-1")
    unwanted = ("BD_BACKEND", "BEADS_DIR", "BEADS_DB", "NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC")
    reader = source(beads, environ=dict.fromkeys((*unwanted, "BEADS_DOLT_PASSWORD"), "x"))
    call(lambda: reader.read("b-1", str(beads.project)))
    assert beads.calls[0]["given"] == ["BEADS_DOLT_PASSWORD"]


def test_failures_have_names(beads: BeadsProject) -> None:
    beads.put("b-1")
    beads.behave("fail")
    assert failure_of(beads) == ("unreadable", "bd failed with exit code 1: Error: the database is damaged")
    beads.behave("garbage")
    assert failure_of(beads) == ("schema_drift", "the output of 'bd --json state list' is not in the expected format")
    beads.behave("flood")
    assert failure_of(beads) == ("schema_drift", "bd wrote more than 256 KiB")
    assert failure_of(beads, path="/nowhere") == ("absent", "bd is not on the daemon's PATH")
    beads.program.write_text("#!/nowhere/at/all\n")
    state, detail = failure_of(beads)
    assert state == "unreadable"
    assert detail.startswith("bd failed with exit code 127")
    wait_for(lambda: not beads.processes, "all processes to end")


def test_program_in_the_project_is_not_started(beads: BeadsProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH may have relative entries."""
    beads.program.rename(beads.project / "bd")
    monkeypatch.chdir(beads.project)
    assert failure_of(beads, path=":.:")[0] == "absent"
    assert beads.calls == []


def test_program_that_cannot_be_started(beads: BeadsProject) -> None:
    """Without `timeout`, the program is started directly."""
    beads.program.write_text("#!/nowhere/at/all\n")
    state, detail = failure_of(beads, path=str(beads.program.parent))
    assert (state, detail) == ("unreadable", "bd cannot be started: No such file or directory")


def test_directory_that_cannot_be_written_to(beads: BeadsProject) -> None:
    beads.place.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code = """
import sys, anyio
from fluxbudgetd.sources.beads import BeadsError, BeadsSource
async def read():
    source = BeadsSource({"PATH": sys.argv[2]})
    try:
        await source.read("b-1", sys.argv[1])
    except BeadsError:
        print(source.reports[0].status.state, source.reports[0].status.hint)
anyio.run(read)
"""
    command = [*OBEDIENT, sys.executable, "-c", code, str(beads.project), str(beads.program.parent)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1].startswith("read-only if the service's sandbox protects it: ")
    assert beads.calls == []


@pytest.mark.parametrize("has_guard", [True, False])
def test_hanging_call_is_killed_with_its_children(beads: BeadsProject, has_guard: bool) -> None:
    beads.put("b-1")
    beads.behave("hang")
    assert failure_of(beads, 2.0, None if has_guard else str(beads.program.parent))[0] == "slow"
    assert beads.is_hanging
    wait_for(lambda: not beads.processes, "all processes to end")


def test_call_that_waits_for_the_lock_is_killed(beads: BeadsProject) -> None:
    beads.put("b-1")
    with beads.locked():
        assert failure_of(beads, 1.0) == ("slow", "bd was killed after 1 s")
        wait_for(lambda: not beads.processes, "all processes to end")


def test_cancelled_call_leaves_no_process(beads: BeadsProject) -> None:
    beads.put("b-1")
    beads.behave("hang")

    async def cancelled() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source(beads).read, "b-1", str(beads.project))
            while not beads.is_hanging:  # noqa: ASYNC110  the program does not report it
                await anyio.sleep(0.005)
            assert beads.processes
            tasks.cancel_scope.cancel()

    anyio.run(cancelled)
    wait_for(lambda: not beads.processes, "all processes to end", PATIENCE / 2)


def test_after_a_failure_the_program_is_not_called_for_a_while(beads: BeadsProject) -> None:
    beads.put("b-1")
    beads.behave("fail")

    async def failing() -> None:
        reader, directory = source(beads), str(beads.project)
        pauses = []
        for _ in range(8):
            with pytest.raises(BeadsError):
                await reader.read("b-1", directory)
            [report] = reader.reports
            pauses.append(report.retry_at - anyio.current_time())
            assert reader.retry_at(directory) == report.retry_at
            calls = len(beads.calls)
            with pytest.raises(BeadsError):
                await reader.read("b-1", directory)
            assert len(beads.calls) == calls
            report.retry_at = 0.0
        assert [round(pause) for pause in pauses] == [1, 2, 4, 8, 16, 32, 60, 60]
        report.at -= 3_600_000_000
        assert reader.reports == [], "what failed an hour ago may be fixed by now"
        since = report.since
        beads.behave()
        assert await reader.read("b-1", directory) is not None
        [report] = reader.reports
        assert report.status.is_readable
        assert report.since > since
        assert reader.retry_at(directory) == 0

    anyio.run(failing)


def test_first_directory_with_beads_is_found(beads: BeadsProject, tmp_path: Path) -> None:
    places = [str(tmp_path / "project" / "deep"), str(tmp_path / "project"), str(tmp_path)]
    assert call(lambda: source(beads).find(places)) == str(beads.project)
    assert call(lambda: source(beads).find(["/nowhere", "/"])) is None
    (tmp_path / ".beads").touch()
    assert call(lambda: source(beads).find([str(tmp_path)])) is None


@needs_root("own files as another user")
def test_beads_of_another_user_are_not_used(beads: BeadsProject) -> None:
    os.chown(beads.place, 12345, 12345)
    assert call(lambda: source(beads).find([str(beads.project)])) is None


def test_spent_tokens_replace_every_label_of_that_dimension(beads: BeadsProject) -> None:
    beads.put("b-1", "sprint", "tokens_spent:5", "tokens_spent_by:me", "tokens_spent:12")
    private = os.umask(0o077)
    try:
        call(lambda: source(beads).put_spent("b-1", str(beads.project), 700))
    finally:
        os.umask(private)
    assert beads.labels("b-1") == ["sprint", "tokens_spent_by:me", "tokens_spent:700"]
    assert (beads.place / "beads.json").stat().st_mode & 0o777 == 0o644, "others may share the project"
    removed = "--remove-label tokens_spent:5 --remove-label tokens_spent:12"
    update = f"update b-1 {removed} --add-label tokens_spent:700 --sandbox --actor=fluxbudget"
    assert beads.commands == ["--json label list b-1", update]


def test_only_a_difference_is_written(beads: BeadsProject) -> None:
    beads.put("b-1", "tokens_spent:5")
    call(lambda: source(beads).put_spent("b-1", str(beads.project), 5))
    assert beads.commands == ["--json label list b-1"]
    beads.put("b-1", "tokens_spent:7", "tokens_spent:5")
    call(lambda: source(beads).put_spent("b-1", str(beads.project), 5))
    assert beads.labels("b-1") == ["tokens_spent:5"]


def test_nothing_is_written_to_an_unknown_bead(beads: BeadsProject) -> None:
    writer = source(beads)
    call(lambda: writer.put_spent("b-9", str(beads.project), 5))
    assert beads.commands == ["--json label list b-9"]
    assert writer.reports[0].status.is_readable
