"""`top` in a real terminal, with a daemon whose answers the tests choose."""

import math
import os
import signal
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from fluxbudgetctl.top import formats
from fluxbudgetctl.top.feed import Feed
from fluxbudgetctl.top.keys import Keys
from fluxbudgetd.wire import messages
from harness.daemon import CTL, Home, wait_for
from harness.scripted_daemon import AT, Answered, ScriptedDaemon, error, event
from harness.terminal import ALTERNATE_SCREEN, MAIN_SCREEN, InTerminal

PHASES = ("brainstorm", "brainstorm-reviewed", "strategized", "planned", "executing", "shipping", "reflect", "done")


class Numbers:
    """The numbers that the false daemon answers with."""

    def __init__(self) -> None:
        self.runs: list[messages.RunLine] = []
        self.agents: dict[str, tuple[messages.Tally, ...]] = {}
        self.sources: tuple[messages.SourceInfo, ...] = ()
        self.page = 50

    def answer(self, request: messages.AnyRequest) -> Answered:
        if isinstance(request, messages.Status):
            first = int(request.after or 0)
            end = first + self.page
            return messages.StatusAnswer(
                runs=tuple(self.runs[first:end]),
                next=str(end) if end < len(self.runs) else None,
                sources=self.sources,
                unattributed=messages.Unattributed(sessions=0, billing=0, total=0),
            )
        if isinstance(request, messages.RunShow):
            found = [line for line in self.runs if line.run.id == request.run]
            return self.shown(found[0]) if found else error("no_run")
        return error("unknown_op")

    def shown(self, line: messages.RunLine) -> messages.RunShowAnswer:
        current = line.run.phases.index(line.run.phase)
        return messages.RunShowAnswer(
            run=line.run,
            spend=line.spend,
            totals=tally("all", 0),
            by_phase=tuple(phase(name, number, current) for number, name in enumerate(line.run.phases)),
            by_stage=(),
            by_agent=self.agents.get(line.run.id, ()),
            by_model=(),
            by_session=(),
            sources=(),
            attachments=(),
        )


def tally(name: str, billing: int, pending: int = 0) -> messages.Tally:
    return messages.Tally(
        name=name, records=1, pending=pending, input=billing, output=0, cache_read=0, cache_creation=0,
        billing=billing, total=billing,
    )  # fmt: skip


def phase(name: str, number: int, current: int) -> messages.PhaseLine:
    state: messages.PhaseState = "completed" if number < current else "current" if number == current else "ahead"
    return messages.PhaseLine(
        name=name, records=0, pending=0, input=0, output=0, cache_read=0, cache_creation=0, billing=0, total=0,
        state=state, since=None, until=None, spent=12_300 * (number <= current), provisional=1 if number == 1 else 0,
        estimate=10_000 + number, estimate_source="table", sample_size=0, override=None,
    )  # fmt: skip


def run_line(
    name: str, spent: int = 208_000, budget: int | None = 250_000, *, goal: str = "", stale: bool = False
) -> messages.RunLine:
    pct = None if budget is None else spent * 1000 // budget / 10
    state: messages.BudgetState = "unlimited"
    if pct is not None:
        state = "exceeded" if pct >= 100 else "warning" if pct >= 80 else "ok"
    run = messages.RunInfo(
        id=name, scope=None, project_dir="/p", goal=goal, complexity=3, phases=PHASES, phase="executing",
        token_budget=budget, warn_pct=80, enforcement="soft", cost_basis="billing", status="active",
        started_at=AT, ended_at=None,
    )  # fmt: skip
    spend = messages.Spend(
        budget=budget, spent=spent, measured=spent, provisional=0, reserved=12_000, remaining=0, pct=pct,
        state=state, stale=stale, stale_why="interstat: locked" if stale else None,
    )  # fmt: skip
    return messages.RunLine(run=run, spend=spend, sessions=1, pending=0, burn=1_800, minutes_left=23)


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def served(home: Home, numbers: Numbers) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(home.socket, numbers.answer) as daemon:
        yield daemon


def row_of(lines: list[str], text: str) -> int:
    return next(number for number, line in enumerate(lines) if text in line)


def test_everything_fits_on_eighty_by_twenty_four(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    """Runs with all their numbers, phases, agents and events; no number is cut."""
    numbers.runs = [
        run_line("20261121-k3f9a", goal="write the parser"),
        run_line("second", 10, None),
        run_line("third", 300_000),
        msgspec.structs.replace(run_line("widest", 12_345, 99_999), burn=12_345),
    ]
    numbers.agents["20261121-k3f9a"] = (tally("fd-small", 2_000), tally("fd-quality", 38_000, pending=1))
    served.events = [
        event(1, "budget.warning", "third", threshold=80),
        event(2, "phase.advanced", "20261121-k3f9a", **{"from": "planned", "to": "executing"}),
        event(3, "phase.blocked", "third", refusal="budget_exceeded|executing|300000/250000 billing tokens"),
    ]
    with InTerminal(home, "top") as shown:
        lines = shown.wait_for("fd-quality", "blocked: budget_exceeded|executing|300000/250000 ")
        first = lines[row_of(lines, "> 20261121-k3f9a")]
        for text in ("executing", "208k/250k", "83.2%", "1.8k/min", "23 min", "12k", "█"):
            assert text in first, first
        assert "10/none" in lines[row_of(lines, "second")]
        assert "120.0%" in lines[row_of(lines, "  third")]
        for text in ("12.3k/99.9k", "12.3k/min"):
            assert text in lines[row_of(lines, "  widest")]
        assert "4 active runs" in lines[0]
        assert "20261121-k3f9a: write the parser" in "\n".join(lines)
        agents = [row_of(lines, "fd-quality"), row_of(lines, "fd-small")]
        assert agents[0] < agents[1]
        assert lines[agents[0]].rstrip().endswith("38k +1 pending")
        assert "✓ brainstorm " in lines[row_of(lines, "fd-quality")]
        assert "~12.3k/10k" in lines[row_of(lines, "brainstorm-reviewed")]
        assert "▶ executing" in "\n".join(lines)
        assert "· shipping" in "\n".join(lines)
        events = [
            row_of(lines, text)
            for text in ("warning: 80 % of the budget spent", "phase planned → executing", "blocked: budget_exceeded")
        ]
        assert events == sorted(events)
        assert lines[events[0]].startswith("12:00:00 third ")
        assert lines[-1].startswith("q quit")
        shown.press("q")
        assert shown.end() == 0


@pytest.mark.parametrize("size", [(40, 10), (60, 15), (80, 24), (132, 50), (200, 60)])
def test_every_size_shows_the_numbers(
    home: Home, numbers: Numbers, served: ScriptedDaemon, size: tuple[int, int]
) -> None:
    """Even the smallest shows the spend, budget and percentage, a phase, an event and the keys."""
    numbers.runs = [run_line(f"5b1c7d9e-0000-4000-8000-aaaabbbbccc{number}", goal="g" * 150) for number in range(3)]
    numbers.agents[numbers.runs[0].run.id] = (tally("fd-" + "quality" * 20, 38_000),)
    served.events = [event(1, "budget.threshold", "5b1c7d9e-0000-4000-8000-aaaabbbbccc0", threshold=50)]
    with InTerminal(home, "top", size=size) as shown:
        lines = shown.wait_for("208k/250k", "83.2%", "▶ ex", "38k", "50 % of", "q quit")
        assert len(lines) == size[1]
        row = lines[row_of(lines, "> 5b1c7d9e")]
        assert ("1.8k/min" in row) == (size[0] >= 60)
        assert ("12k" in row) == (size[0] >= 80)
        assert ("ggg" in row) == (size[0] >= 132)
        shown.press("q")
        assert shown.end() == 0


def test_resize_redraws(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    numbers.runs = [run_line(f"r{number}") for number in range(30)]
    with InTerminal(home, "top") as shown:
        shown.wait_for("30 active runs", "1.8k/min")
        shown.resize(42, 12)
        lines = shown.wait_for("30 active runs", "208k/250k", "q quit")
        assert lines[-1].startswith("q quit")
        assert "1.8k/min" not in shown.text()
        shown.resize(39, 12)
        shown.wait_for("too small: 40x10 at least")
        assert "r1" not in shown.text()
        shown.resize(100, 30)
        shown.wait_for("30 active runs", "1.8k/min", "q quit")
        shown.press("q")
        assert shown.end() == 0


def test_selecting_a_run_shows_its_details(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    """Arrows, j and k move the highlighted row, which stays on its run when a newer run starts."""
    numbers.runs = [run_line("r1"), run_line("r2"), run_line("r3")]
    numbers.agents = {name: (tally(f"agent-of-{name}", 5),) for name in ("r1", "r2", "r3")}
    with InTerminal(home, "top") as shown:
        shown.wait_for("agent-of-r1")
        assert shown.style("> r1").reverse
        shown.press("\x1b[B")
        shown.wait_for("> r2", "agent-of-r2")
        assert not shown.style("  r1").reverse
        shown.press("j")
        shown.wait_for("> r3", "agent-of-r3", "3/3")
        shown.press("j")
        shown.press("k\x1bOA")
        shown.wait_for("> r1", "agent-of-r1")
        shown.press("j")
        shown.wait_for("> r2")
        numbers.runs = [run_line("r0"), *numbers.runs]
        shown.press("r")
        shown.wait_for("> r2", "3/4", "  r0")
        numbers.runs = [line for line in numbers.runs if line.run.id != "r2"]
        shown.press("r")
        shown.wait_for("> r3", "agent-of-r3")
        shown.press("\x1b")
        assert shown.end() == 0


def test_run_flag_selects_a_run(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    numbers.runs = [run_line("r1"), run_line("r2")]
    with InTerminal(home, "watch", "--tui", "--run", "r2") as shown:
        shown.wait_for("> r2", "r2 ─", "2/2")
        shown.press("q")
        assert shown.end() == 0


def test_two_hundred_runs_scroll(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    """All pages are read; the selected row is always visible."""
    numbers.runs = [run_line(f"run-{number:03}") for number in range(200)]
    with InTerminal(home, "top") as shown:
        shown.wait_for("200 active runs", "> run-000", "1/200")
        shown.press("\x1b[F")
        shown.wait_for("> run-199", "200/200")
        shown.press("k" * 57)
        shown.wait_for("> run-142", "143/200")
        shown.press("\x1b[5~")
        shown.wait_until_gone("> run-142")
        shown.press("g")
        shown.wait_for("> run-000")
        shown.press("q")
        assert shown.end() == 0


def test_events_are_shown_as_they_happen(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    numbers.runs = [run_line("r1")]
    with InTerminal(home, "top") as shown:
        shown.wait_for("208k/250k")
        served.wait_for_subscriber()
        numbers.runs = [run_line("r1", 230_000)]
        served.happen(event(1, "budget.threshold", threshold=90))
        shown.wait_for("90 % of the budget spent", "230k/250k")
        shown.press("q")
        assert shown.end() == 0


def test_events_selections_and_refreshes_poll_at_once(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    """Polls are an hour apart, and a silent stream counts as lost only after an hour, so no other poll happens."""
    numbers.runs = [run_line("r1")]
    with Feed(str(home.socket), 10.0, lambda: None, poll_seconds=3600.0, heartbeat_ms=1_200_000) as feed:
        wait_for(lambda: feed.snapshot().runs, "the first poll")
        wait_for(
            lambda: len(served.subscriptions()) == 2,
            "the subscription that follows the one that finds the latest event",
        )
        served.wait_for_subscriber()
        numbers.runs = [run_line("r1", 230_000)]
        served.happen(event(1))
        wait_for(lambda: feed.snapshot().runs[0].spend.spent == 230_000, "the poll after the event")
        assert feed.snapshot().detail is None
        feed.select("r1")
        wait_for(lambda: feed.snapshot().detail is not None, "the poll after the selection")
        numbers.runs = []
        feed.refresh()
        wait_for(lambda: not feed.snapshot().runs, "the poll after the refresh")


def test_only_the_latest_events_are_requested(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    served.events = [event(number, "budget.threshold", threshold=number) for number in range(1, 1001)]
    with InTerminal(home, "top") as shown:
        shown.wait_for("1000 % of the budget spent", "no active runs")
        assert [request.since for request in served.subscriptions()] == [None, 800]
        shown.press("q")
        assert shown.end() == 0


def test_daemon_goes_away_and_comes_back(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    """While it is away, the last known numbers are shown in grey; afterwards, everything that has happened since."""
    numbers.runs = [run_line("r1")]
    served.events = [event(1, "budget.threshold", threshold=50)]
    with InTerminal(home, "top") as shown:
        shown.wait_for("208k/250k", "50 % of the budget spent")
        assert shown.style("83.2%").fg == "brown"  # what pyte calls yellow
        served.close()
        shown.wait_for("daemon away, waiting", "208k/250k", "50 % of the budget spent", "1 active run")
        assert shown.style("83.2%").fg == "brightblack"
        shown.press("r")
        numbers.runs = [run_line("r1", 230_000), run_line("r2")]
        served.events.append(event(2, "budget.threshold", threshold=90))
        served.open()
        shown.wait_for("230k/250k", "90 % of the budget spent", "2 active runs")
        shown.wait_until_gone("daemon away")
        assert shown.text().count("50 % of the budget spent") == 1
        shown.press("q")
        assert shown.end() == 0


def test_starts_without_a_daemon(home: Home, numbers: Numbers) -> None:
    with InTerminal(home, "top") as shown:
        shown.wait_for("daemon away, waiting", "q quit")
        numbers.runs = [run_line("r1")]
        with ScriptedDaemon(home.socket, numbers.answer) as daemon:
            daemon.happen(event(1, "budget.threshold", threshold=50))
            shown.wait_for("> r1", "208k/250k", "50 % of the budget spent")
            shown.press("q")
            assert shown.end() == 0


def test_keys_work_while_the_daemon_does_not_answer(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    numbers.runs = [run_line("r1"), run_line("r2")]
    with InTerminal(home, "top", "--timeout", "3600") as shown:
        shown.wait_for("> r1", "2 active runs")
        served.wait_for_subscriber()
        served.mute.set()
        asked = len(served.asked)
        shown.press("r")
        shown.press("j")
        shown.wait_for("> r2")
        assert len(served.asked) == asked
        shown.press("q")
        assert shown.end() == 0


def test_stale_numbers_are_marked(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    numbers.runs = [run_line("r1", stale=True)]
    numbers.sources = (
        messages.SourceInfo(
            name="interstat", path="/i", state="locked", detail="", hint="", since=AT, notes=(), anomalies=0
        ),
    )
    with InTerminal(home, "top") as shown:
        shown.wait_for("stale: interstat: locked")
        shown.press("q")
        assert shown.end() == 0


def test_text_from_outside_is_escaped(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    """Control characters are escaped, markup is printed as text, and wide characters do not shift columns."""
    numbers.runs = [run_line("r1", goal="[bold red]x[/] \x1b[2J\x1b]0;owned\x07 日本語" + "語" * 60)]
    numbers.agents["r1"] = (tally("[/]\x1b[31mfd\n-evil", 5), tally("語" * 60, 4))
    served.events = [
        event(1, "source.degraded", None, source="[link]a\x1b[5m", state="\r\nlocked"),
        event(2, "of.the\x1b[2Jfuture", "\x1b[H", what="{threshold}"),
        event(3, "budget.threshold", "r1"),
    ]
    with InTerminal(home, "top") as shown:
        lines = shown.wait_for("[bold red]x[/] \\x1b[2J", "[/]\\x1b[31mfd\\n-evil", "? % of the budget spent")
        assert "[link]a\\x1b[5m cannot be read: \\r\\nlocked" in "\n".join(lines)
        assert "of.the\\x1b[2Jfuture what={threshold}" in "\n".join(lines)
        assert "日" in "\n".join(lines)
        assert lines[0].startswith("fluxbudget  1 active run")
        assert lines[-1].startswith("q quit")
        assert b"\x1b[31mfd" not in shown.raw
        assert b"\x1b]0;" not in shown.raw
        shown.press("q")
        assert shown.end() == 0


@pytest.mark.parametrize(("environ", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_respected(
    home: Home, numbers: Numbers, served: ScriptedDaemon, environ: dict[str, str], colour: bool
) -> None:
    numbers.runs = [run_line("r1")]
    with InTerminal(home, "top", environ=environ) as shown:
        shown.wait_for("83.2%")
        assert (shown.style("83.2%").fg != "default") == colour
        assert shown.style("> r1").reverse
        shown.press("q")
        assert shown.end() == 0


def test_terminal_without_unicode_gets_plain_characters(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    numbers.runs = [run_line("r1", goal="日本")]
    served.events = [event(1, "phase.advanced", **{"from": "planned", "to": "executing"})]
    with InTerminal(home, "top", environ={"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}) as shown:
        shown.wait_for("> r1", "##", "> executing", "phase planned ? executing")
        assert shown.raw.isascii()
        shown.press("q")
        assert shown.end() == 0


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
)
def test_signals_restore_the_terminal(
    home: Home, numbers: Numbers, served: ScriptedDaemon, number: signal.Signals, code: int
) -> None:
    with InTerminal(home, "top") as shown:
        shown.wait_for("no active runs")
        shown.signal(number)
        assert shown.end() == code


def test_ctrl_c_is_130(home: Home, served: ScriptedDaemon) -> None:
    with InTerminal(home, "top") as shown:
        shown.wait_for("no active runs")
        shown.press("\x03")
        assert shown.end() == 130


def test_ctrl_z_restores_the_terminal_until_continued(home: Home, served: ScriptedDaemon) -> None:
    with InTerminal(home, "top") as shown:
        shown.wait_for("no active runs")
        shown.press("\x1a")
        _, status = os.waitpid(shown.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        wait_for(lambda: shown.raw.endswith(MAIN_SCREEN), "the main screen")
        shown.signal(signal.SIGCONT)
        wait_for(lambda: shown.raw.rfind(b"no active runs") > shown.raw.rfind(MAIN_SCREEN), "the view again")
        shown.press("q")
        assert shown.end() == 0


def test_internal_error_restores_the_terminal(home: Home, numbers: Numbers, served: ScriptedDaemon) -> None:
    """Numbers that no daemon sends break the view: the terminal is restored, then the error is printed."""
    numbers.runs = [run_line("r1")]
    with InTerminal(home, "top") as shown:
        shown.wait_for("> r1")
        spend = msgspec.structs.replace(numbers.runs[0].spend, pct=math.nan)
        numbers.runs = [msgspec.structs.replace(numbers.runs[0], spend=spend)]
        shown.press("r")
        assert shown.end() == 70
        wait_for(lambda: b"internal error" in shown.raw.split(MAIN_SCREEN)[-1], "the error after the view")


@pytest.mark.parametrize("verb", [["top"], ["watch", "--tui"]])
@pytest.mark.parametrize("which", ["stdin", "stdout"])
def test_without_a_terminal_it_is_a_usage_error(home: Home, verb: list[str], which: str) -> None:
    master, slave = os.openpty()
    result = subprocess.run(
        [*CTL, *verb],
        env={**home.environ, "TERM": "xterm"},
        stdin=subprocess.DEVNULL if which == "stdin" else slave,
        stdout=subprocess.DEVNULL if which == "stdout" else slave,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(master)
    os.close(slave)
    assert result.returncode == 64
    assert result.stderr == (
        f"fluxbudgetctl: {which} is not a terminal\nhint: use 'fluxbudgetctl status' or 'fluxbudgetctl watch'\n"
    )


def test_dumb_terminal_is_a_usage_error(home: Home) -> None:
    with InTerminal(home, "top", environ={"TERM": "dumb"}) as shown:
        assert shown.process.wait(timeout=60) == 64
        shown.wait_for("cannot move its cursor")
        assert ALTERNATE_SCREEN not in shown.raw


def test_durations_and_percentages() -> None:
    times = {None: "-", 0: "0 min", 99: "99 min", 100: "1.6 h", 5999: "99.9 h", 6000: "4 d", 10**9: "years"}
    assert {minutes: formats.duration(minutes) for minutes in times} == times
    shares = {None: "-", 0.0: "0.0%", 83.2: "83.2%", 999.9: "999.9%", 1000.0: ">999%"}
    assert {pct: formats.percent(pct) for pct in shares} == shares


def test_keys_arrive_in_any_pieces() -> None:
    """A sequence that arrives byte by byte is one key, and so is an escape alone; unknown sequences are skipped."""
    keys = Keys()
    assert [keys.feed(bytes([byte])) for byte in b"\x1b[A"] == [[], [], ["up"]]
    assert keys.feed(b"j\x1b[1;5Dk\x1bOBx\x1b[6~") == ["down", "up", "down", "page down"]
    assert keys.end_of_sequence() == []
    assert keys.feed(b"\x1b") == []
    assert keys.end_of_sequence() == ["quit"]
    assert keys.feed(b"\x1b[") == []
    assert keys.end_of_sequence() == []
    assert keys.feed(b"\x1bxq") == ["quit"]
