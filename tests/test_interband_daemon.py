"""Interband's files, written by a real daemon, follow the runs and their sessions."""

import os
import signal
import time
from pathlib import Path

from fluxbudgetd.wire import messages
from harness.daemon import Home, started, wait_for
from harness.events import (
    CommandProgram,
    change_run,
    channels,
    configure,
    interband_files,
    wait_until_delivered,
)
from harness.interstat import Interstat


def test_interband_follows_sessions_and_runs(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    """A file comes and goes with its session. Files of other programs are left alone."""
    home.start()
    run = started(home, session="s1", token_budget=1000)
    other = started(home, session="o1", token_budget=1000)
    foreign = home.root / ".interband" / "interstat" / "budget" / "foreign.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"payload": {"pct_consumed": 1, "total_tokens": 2}}')
    unrelated = {"foreign": (1, 2)}
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    interstat.insert("o1", input_tokens=900, output_tokens=0)
    others = {"o1": (90.0, 900), **unrelated}
    wait_for(lambda: interband_files(home) == {"s1": (81.0, 810), **others}, "a file of each run's session")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    wait_for(
        lambda: interband_files(home) == {"s1": (81.0, 810), "s2": (81.0, 810), **others}, "the new session's file"
    )
    home.ok("run", "detach", "--session", "s2")
    wait_for(lambda: interband_files(home) == {"s1": (81.0, 810), **others}, "the detached session's file to go")
    home.ok("run", "attach", "--run", other, "--session", "s1")
    # The usage of s1 stays with its first run. Its status line shows its current run.
    wait_for(lambda: interband_files(home) == {"s1": (90.0, 900), **others}, "the moved session's file")
    home.ok("run", "attach", "--run", run, "--session", "s3")
    wait_for(lambda: "s3" in interband_files(home), "the third session's file")
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: interband_files(home) == {"s1": (90.0, 900), **others}, "only the ended run's files to go")
    home.ok("run", "cancel", "--run", other)
    wait_for(lambda: interband_files(home) == unrelated, "all but the foreign file to go")


def test_session_attached_by_its_rows_gets_an_interband_file(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    """A row that names the run's bead attaches its session, whose status line then shows the warned run."""
    home.start()
    run = started(home, session="s1", scope="b1", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: interband_files(home) == {"s1": (81.0, 810)}, "the file")
    interstat.insert("s2", input_tokens=20, output_tokens=0, bead_id="b1")
    assert home.spend(run).spent == 830
    wait_for(lambda: set(interband_files(home)) == {"s1", "s2"}, "the attached session's file")


def test_interband_file_follows_a_changed_budget(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: interband_files(home) == {"s1": (90.0, 900)}, "the file")
    change_run(home, messages.RunSet(run=run, token_budget=1500, wait_ms=30_000))
    wait_for(lambda: interband_files(home) == {"s1": (60.0, 900)}, "the file to have the new percentage")
    change_run(home, messages.RunSet(run=run, token_budget="none", wait_ms=30_000))
    wait_for(lambda: interband_files(home) == {}, "the file of an unlimited run to go")


def test_interband_file_of_a_run_that_ended_while_the_channel_was_off_is_removed(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    """The reader ignores a file's age, so files of ended runs must go as soon as the channel is on again."""
    home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: interband_files(home) == {"s1": (90.0, 900)}, "the file")
    configure(home, "[channels.interband]\nenabled = false\n")
    assert channels(home)["interband"].state == "off"
    home.ok("run", "finish", "--run", run)
    configure(home)
    assert channels(home)["interband"].state == "ok"
    started(home, session="s2", token_budget=1000)
    wait_until_delivered(home)
    assert interband_files(home) == {}


def test_interband_moves_with_its_configuration(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    """The files at the old place are removed, because nothing else would remove them."""
    old, new = home.root / "old", home.root / "new"

    def sessions_in(root: Path) -> set[str]:
        return {path.stem for path in (root / "interstat" / "budget").glob("*.json")}

    configure(home, f'[channels.interband]\nroot = "{old}"\n')
    daemon = home.start()
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: sessions_in(old) == {"s1"}, "the file")
    configure(home, f'[channels.interband]\nroot = "{new}"\n')
    daemon.signal(signal.SIGHUP)
    wait_for(lambda: (sessions_in(old), sessions_in(new)) == (set(), {"s1"}), "the file to be only in the new place")
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: not sessions_in(new), "the file to go")


def test_interband_files_are_removed_when_a_request_finds_the_channel_off(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    """Any request that reads the configuration is enough; no SIGHUP and no new usage is needed."""
    configure(home)
    home.start()
    started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: interband_files(home) == {"s1": (90.0, 900)}, "the file")
    configure(home, "[channels.interband]\nenabled = false\n")
    home.ctl("doctor")
    wait_for(lambda: not interband_files(home), "the file to go")


def test_unwritable_interband_file_stops_no_other(home: Home, interstat: Interstat, command: CommandProgram) -> None:
    """Files of the same run, and of runs that are warned of later, are written. The failed one is retried."""
    home.start()
    blocked = home.root / ".interband" / "interstat" / "budget" / "s1.json"
    (blocked / "in-the-way").mkdir(parents=True)
    run = started(home, session="s1", token_budget=1000)
    home.ok("run", "attach", "--run", run, "--session", "s2")
    others = [f"o{number}" for number in range(5)]
    for name in others:
        started(home, session=name, scope=f"b-{name}", token_budget=1000)

    def written() -> set[str]:
        return {path.stem for path in blocked.parent.glob("*.json") if path.is_file()}

    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: written() == {"s2"}, "the other session's file")
    wait_for(lambda: "s1.json cannot be written" in channels(home)["interband"].detail, "interband to fail")
    assert channels(home)["interband"].state == "failing"
    for name in others:
        interstat.insert(name, input_tokens=950, output_tokens=0)
    wait_for(lambda: written() == {"s2", *others}, "the other runs' files")
    for name in others:
        # Its row attaches it, without an event.
        interstat.insert(f"{name}-late", input_tokens=1, output_tokens=0, bead_id=f"b-{name}")
    others += [f"{name}-late" for name in others]
    wait_for(lambda: written() == {"s2", *others}, "the files of their new sessions")
    (blocked / "in-the-way").rmdir()
    blocked.rmdir()
    expected = {**dict.fromkeys(["s1", "s2"], (90.0, 900)), **dict.fromkeys(others, (95.1, 951))}
    wait_for(lambda: interband_files(home) == expected, "every file")
    wait_until_delivered(home)


def test_interband_file_of_a_warned_run_is_kept_however_old(
    home: Home, interstat: Interstat, command: CommandProgram
) -> None:
    """The run has had no usage for a week and is still above its threshold. Files of unknown sessions are removed."""
    home.start()
    for name in ("1", "2"):
        started(home, id=f"r{name}", session=f"s{name}", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    wait_for(lambda: set(interband_files(home)) == {"s1"}, "the first run's file")
    wait_until_delivered(home)
    directory = home.root / ".interband" / "interstat" / "budget"
    (directory / "forgotten.json").write_text('{"payload": {"pct_consumed": 1, "total_tokens": 2}}')
    long_ago = time.time() - 8 * 24 * 3600
    for name in ("s1.json", "forgotten.json"):
        os.utime(directory / name, (long_ago, long_ago))
    interstat.insert("s2", input_tokens=900, output_tokens=0)
    wait_for(lambda: "s2" in interband_files(home), "the second run's file")
    wait_for(lambda: "forgotten" not in interband_files(home), "the old file to go")
    wait_until_delivered(home)
    assert set(interband_files(home)) == {"s1", "s2"}
