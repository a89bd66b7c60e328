"""Runs that are adopted from beads, by a real daemon with a stand-in for `bd`."""

import json
import os
import signal
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.errors import NoRunError
from fluxbudgetd.sources.beads import BeadsSource
from fluxbudgetd.wire import messages
from harness.beads import BeadsProject
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import Subscriber, configure
from harness.hooks import Claude, attached_sessions, write_usage
from harness.intercore import IcProject
from harness.service import service_over, until, within
from harness.session_process import SessionProcess, command


@pytest.fixture
def beads(home: Home, monkeypatch: pytest.MonkeyPatch) -> BeadsProject:
    """A project with beads, and a PATH with `bd`, for daemons that start later."""
    made = BeadsProject(home.project, home.root / "bin")
    monkeypatch.setenv("PATH", f"{made.program.parent}:{os.environ['PATH']}")
    return made


def named(home: Home, scope: str = "b-1", cwd: Path | None = None) -> messages.AnyAnswer | messages.ErrorAnswer:
    """Ask what is left of the run of a bead that the environment names."""
    return home.ask(messages.Remaining(hints=messages.Hints(scope=scope, cwd=str(cwd or home.project))))


def runs(home: Home) -> list[messages.RunInfo]:
    answer = home.ask(messages.RunList(all=True))
    assert isinstance(answer, messages.RunListAnswer)
    return [line.run for line in answer.runs]


def adopted(home: Home, scope: str = "b-1") -> messages.RunInfo:
    """Name a bead until it has a run; return the run."""

    def found() -> list[messages.RunInfo]:
        named(home, scope)
        return [run for run in runs(home) if run.scope == scope]

    run: messages.RunInfo = wait_for(found, "the run of the bead")[0]
    return run


def read(home: Home, beads: BeadsProject, scope: str) -> None:
    """Name a bead until it has been read."""

    def is_read() -> bool:
        named(home, scope)
        return f"--json state list {scope}" in beads.commands

    wait_for(is_read, "the bead to be read")


def budget_of(home: Home, run: str) -> int | None:
    return home.details(run).run.token_budget


def states(home: Home) -> list[str]:
    """Return the states of beads that `doctor` shows."""
    answer = home.ask(messages.Doctor())
    assert isinstance(answer, messages.DoctorAnswer)
    return [source.state for source in answer.sources if source.name == "beads"]


def test_bead_that_is_named_gets_a_run(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:120000", "complexity:4", "phase:planned")
    home.start()
    with Subscriber(home) as subscriber:
        answer = named(home)
        assert isinstance(answer, messages.ErrorAnswer)
        assert answer.error.code == "no_run"
        data = subscriber.until("run.started").data
        assert data == {"token_budget": 120_000, "scope": "b-1", "phase": "planned", "via": "beads"}
    [run] = runs(home)
    assert (run.scope, run.project_dir, run.complexity, run.phase) == ("b-1", str(home.project), 4, "planned")
    assert (run.cost_basis, run.enforcement, run.adopted_from) == ("billing", "soft", "beads")
    assert home.ok("remaining", environ={"CLAVAIN_BEAD_ID": "b-1"}) == "120000"
    assert set(beads.commands) == {"--json state list b-1"}


@pytest.mark.parametrize(
    ("labels", "budget"),
    [
        ((), 250_000),
        (("complexity:9",), 1_000_000),
        (("token_budget:0",), None),
        (("token_budget:",), None),
        (("token_budget:x",), 250_000),
    ],
)
def test_budget_of_a_bead(home: Home, beads: BeadsProject, labels: tuple[str, ...], budget: int | None) -> None:
    beads.put("b-1", *labels)
    home.start()
    assert adopted(home).token_budget == budget


def test_bead_is_read_where_the_project_has_its_beads(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:5")
    deep = home.project / "src" / "deep"
    deep.mkdir(parents=True)
    home.start()
    named(home, cwd=deep)
    wait_for(lambda: runs(home), "the run of the bead")
    assert runs(home)[0].project_dir == str(home.project)


def test_what_gets_no_run(home: Home, beads: BeadsProject) -> None:
    """An unknown bead, a bead that is done, one whose run has ended, and a name outside a project with beads."""
    beads.put("b-2", "phase:done")
    beads.put("b-3", "token_budget:5")
    beads.put("last")
    home.start()
    started(home, id="r3", scope="b-3")
    read(home, beads, "b-1")
    read(home, beads, "b-2")
    home.ok("run", "finish", "--run", "r3")
    assert isinstance(named(home, "b-3"), messages.RemainingAnswer)
    named(home, "b-4", cwd=home.root)
    named(home, "--help")
    adopted(home, "last")
    assert {run.scope for run in runs(home)} == {"b-3", "last"}
    assert {words.split()[-1] for words in beads.commands} == {"b-1", "b-2", "last"}


def test_run_that_starts_while_its_bead_is_read_is_the_only_one(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1")
    beads.put("b-2")
    home.start()
    with beads.locked():
        named(home)
        wait_for(lambda: beads.calls, "bd to be called")
        started(home, id="r1", scope="b-1")
    adopted(home, "b-2")  # so the first bead has been handled
    assert sorted(run.scope or "" for run in runs(home)) == ["b-1", "b-2"]


def test_nothing_is_read_if_that_is_switched_off(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1")
    configure(home, "[beads]\nread = false")
    home.start()
    named(home)
    assert states(home) == []
    configure(home)
    assert states(home) == []  # this also reads the configuration
    adopted(home)
    assert set(beads.commands) == {"--json state list b-1"}


def test_session_that_names_a_bead_belongs_to_its_run(home: Home, beads: BeadsProject) -> None:
    """The session counts from when it named the bead, however long the bead took to read."""
    beads.put("b-1", "token_budget:5000")
    home.start()
    claude = Claude(home)
    with beads.locked():
        claude.call("SessionStart", source="startup", hints=messages.Hints(scope="b-1", cwd=str(home.project)))
        write_usage(home, 700)
        wait_for(lambda: beads.calls, "bd to be called")
    run = adopted(home)
    wait_for(lambda: attached_sessions(home, run.id), "the session to be attached")
    assert attached_sessions(home, run.id) == {"s1": True}
    wait_for(lambda: home.spent(run.id) == 700, "all of its usage to count")


def test_label_is_followed_and_yields_to_a_person(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:1000")
    home.start()
    run = adopted(home)
    claude, hints = Claude(home), messages.Hints(scope="b-1", cwd=str(home.project))

    def starts() -> int:
        """Start a session, and return how many times the label was read."""
        claude.call("SessionStart", source="startup", hints=hints)
        return len(beads.commands)

    beads.put("b-1", "token_budget:3000")
    starts()
    wait_for(lambda: budget_of(home, run.id) == 3000, "the label's new budget")
    beads.put("b-1", "token_budget:0")
    starts()
    wait_for(lambda: budget_of(home, run.id) is None, "no budget")
    beads.put("b-1", "token_budget:700")
    starts()
    wait_for(lambda: budget_of(home, run.id) == 700, "a budget again")
    home.ok("run", "set", "--run", run.id, "--budget", "900")
    beads.put("b-1", "token_budget:5000")
    read = starts()
    wait_for(lambda: len(beads.commands) > read - 1, "the label to be read")
    beads.put("b-2")
    adopted(home, "b-2")  # so what was read before has been handled
    assert budget_of(home, run.id) == 900


def test_phase_change_has_the_label_read_again(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:1000")
    home.start()
    run = adopted(home)
    beads.put("b-1", "token_budget:3000")
    home.ok("advance", "--run", run.id, "--from", run.phase)
    wait_for(lambda: budget_of(home, run.id) == 3000, "the label's new budget")


def test_higher_label_of_a_hard_run_waits_for_a_person(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:1000000")
    home.start()
    run = adopted(home)
    home.ok("run", "set", "--run", run.id, "--enforcement", "hard")
    with Subscriber(home, since=0) as subscriber:
        beads.put("b-1", "token_budget:3000000")
        home.ok("advance", "--run", run.id, "--from", run.phase)
        data = subscriber.until("run.loosened").data
        assert (data["action"], data["from"], data["to"], data["via"]) == ("raise", 1_000_000, 3_000_000, "beads")
        assert budget_of(home, run.id) == 1_000_000
        beads.put("b-1", "token_budget:400000")
        home.ok("advance", "--run", run.id, "--from", home.details(run.id).run.phase)
        wait_for(lambda: budget_of(home, run.id) == 400_000, "a lower budget, which applies at once")
        changed = subscriber.until("run.changed").data
        assert (changed["token_budget"], changed["via"]) == (400_000, "beads")
        beads.put("b-1", "token_budget:700000")
        home.ok("advance", "--run", run.id, "--from", home.details(run.id).run.phase)
        wait_for(lambda: "700000" in home.details(run.id).run.withheld, "a higher budget to be withheld")
        beads.put("b-1")
        home.ok("advance", "--run", run.id, "--from", home.details(run.id).run.phase)
        wait_for(lambda: home.details(run.id).run.withheld == "", "the withheld value to go with the label")
        assert budget_of(home, run.id) == 400_000


def test_answers_do_not_wait_for_a_hanging_program(tmp_path: Path) -> None:
    """The answer arrives while the call that the request has caused still hangs."""
    beads = BeadsProject(tmp_path / "project", tmp_path / "bin")
    beads.put("b-1")
    path = f"{beads.program.parent}:{os.environ['PATH']}"
    hints = messages.Hints(scope="b-1", cwd=str(beads.project))

    async def asked() -> None:
        source = BeadsSource({**os.environ, "PATH": path}, seconds=3600)
        async with service_over(tmp_path, beads=source) as (service, _):
            beads.behave("hang")
            for _ in range(2):  # the second time, it hangs already
                with pytest.raises(NoRunError):
                    await service.totals.find(None, None, None, hints, within(60))
                await until(lambda: beads.is_hanging)
            start = messages.RunStart(scope="b-1", project_dir=str(beads.project))
            run, *_ = await service.lifecycle.start(start, within(60))
            assert (await service.totals.find(None, None, None, hints, within(60))).run == run
            assert beads.processes

    anyio.run(asked)
    wait_for(lambda: not beads.processes, "all processes to end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_daemon_leaves_no_process_behind(home: Home, beads: BeadsProject, number: signal.Signals) -> None:
    beads.put("b-1")
    daemon = home.start()
    beads.behave("hang")
    named(home)
    wait_for(lambda: beads.is_hanging, "bd to hang")
    daemon.signal(number)
    daemon.process.wait()
    wait_for(lambda: not beads.processes, "all processes to end")


def test_hanging_program_is_named_and_recovers(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:5")
    home.start()
    with beads.locked():
        named(home)
        wait_for(lambda: states(home) == ["slow"], "the call to be killed")
    result = home.ctl("doctor")
    assert result.returncode == 1
    assert f"problem   beads: slow: bd was killed after 2 s ({beads.place})\n" in result.stdout
    assert not beads.processes
    wait_for(lambda: isinstance(named(home), messages.RemainingAnswer), "the bead to be read after the pause")
    assert states(home) == ["ok"]
    assert home.ctl("doctor").returncode == 0


def answered_beads_ended(home: Home) -> bool:
    result = home.ctl("doctor", "--json")
    return '"slow"' in result.stdout


def test_missing_program_is_named(home: Home, beads: BeadsProject, daemon: Daemon) -> None:
    beads.put("b-1")
    beads.program.unlink()
    named(home)
    wait_for(lambda: "bd is not on the daemon's PATH" in home.ctl("doctor").stdout, "the problem")
    assert daemon.log.count('"source": "beads"') == 1


def test_run_of_intercore_is_not_started_twice(home: Home, beads: BeadsProject) -> None:
    """Its budget is intercore's until the label changes."""
    project = IcProject(home.project)
    ic_run = project.run_create("a goal", budget=1000)
    beads.put("b-1", f"ic_run_id:{ic_run}", "token_budget:5000")
    home.start()
    run = adopted(home)
    assert (run.id, run.token_budget, run.adopted_from) == (ic_run, 1000, str(project.database))
    beads.put("b-1", f"ic_run_id:{ic_run}", "token_budget:6000")
    Claude(home).call("SessionStart", source="startup", hints=messages.Hints(scope="b-1", cwd=str(home.project)))
    wait_for(lambda: budget_of(home, ic_run) == 6000, "the label's new budget")
    project.set(ic_run, token_budget=1234, budget_warn_pct=70)
    wait_for(lambda: home.details(ic_run).run.warn_pct == 70, "intercore's changes to be followed")
    assert budget_of(home, ic_run) == 6000
    assert len(runs(home)) == 1


def test_run_that_intercore_does_not_have_is_named(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "ic_run_id:abcd1234")
    home.start()
    read(home, beads, "b-1")
    what = "bead b-1 has no run: its label ic_run_id names intercore's run abcd1234, which was not found"
    wait_for(lambda: what in home.ctl("doctor").stdout, "the problem")
    home.ok("run", "start", "--scope", "b-1")
    assert home.ctl("doctor").returncode == 0


def test_name_is_looked_up_in_each_directory(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1")
    beads.put("b-2")
    home.start()
    named(home, cwd=home.root)
    adopted(home, "b-2")  # so the first name was looked up
    named(home)
    wait_for(lambda: len(runs(home)) == 2, "its run")


def test_bead_of_intercore_gets_a_run_of_its_own_if_intercore_is_not_followed(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "ic_run_id:abcd1234", "token_budget:5000")
    configure(home, "[intercore]\nadopt = false")
    home.start()
    assert adopted(home).token_budget == 5000


def test_run_start_takes_an_adopted_run_over(home: Home, beads: BeadsProject) -> None:
    """A script that starts the bead's run does not fail because it came second; what it sets is kept."""
    beads.put("b-1", "token_budget:5000", "complexity:4")
    home.start()
    run = adopted(home)
    start = ("run", "start", "--scope", "b-1", "--goal", "mine", "--complexity", "2", "--budget", "700")
    assert home.ok(*start) == run.id
    found = home.details(run.id).run
    assert (found.token_budget, found.complexity, found.kept) == (700, 4, ("token_budget",))
    home.ok("run", "set", "--run", run.id, "--budget", "900")
    assert home.ok(*start) == run.id
    assert budget_of(home, run.id) == 900
    assert home.ctl(*start, "--phases", "a,b").returncode == 65


def test_run_start_inside_a_session_does_not_loosen_an_adopted_run(home: Home, beads: BeadsProject) -> None:
    beads.put("b-1", "token_budget:5000")
    configure(home, '[runs]\nenforcement = "hard"')
    home.start()
    run = adopted(home)
    with SessionProcess(home, "s1") as claude:
        claude.hook("SessionStart", source="startup")
        result = claude.bash(command("run", "start", "--scope", "b-1", "--budget", "9000"))
    assert (result.returncode, budget_of(home, run.id)) == (1, 5000)


def test_nested_session_that_names_a_new_bead_joins_the_outer_run(home: Home, beads: BeadsProject) -> None:
    beads.put("b-2", "token_budget:9000")
    home.start()
    started(home, id="r1", token_budget=1000, enforcement="hard", session="s1")
    with SessionProcess(home, "s1") as claude:
        claude.hook("SessionStart", source="startup")
        nested = {"session_id": "s2", "hook_event_name": "SessionStart", "source": "startup", "cwd": str(home.project)}
        environ = "unset FLUXBUDGET_RUN CLAUDE_CODE_SESSION_ID; export CLAVAIN_BEAD_ID=b-2"
        hook = f"{environ}; {command('hook', '--timeout', '60')}"
        with beads.locked():
            claude.run("sh", "-c", hook, stdin=json.dumps(nested))
            wait_for(lambda: beads.calls, "the bead to be read")
        run = adopted(home, "b-2")
        claude.run("sh", "-c", hook, stdin=json.dumps({**nested, "hook_event_name": "UserPromptSubmit"}))
    assert attached_sessions(home, "r1") == {"s1": True, "s2": True}
    assert attached_sessions(home, run.id) == {}
