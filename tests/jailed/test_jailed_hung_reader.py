"""A reader that hangs while everything else of the daemon goes on is not hidden by that: the watchdog sees it."""

from fluxbudgetd.wire import messages
from harness.daemon import started, wait_for
from harness.held_thread import Held, threads
from harness.interstat import Interstat
from harness.jail_service import PATIENT, Account


def test_reader_that_hangs_has_the_daemon_started_anew(home: Account) -> None:
    home.install("WatchdogSec=2s")
    interstat = Interstat(home.interstat)
    interstat.insert("s1", input_tokens=600, output_tokens=0)
    run = started(home, id="r1", session="s1", token_budget=1000)
    assert home.spend(run).remaining == 400
    hanging = home.pid
    with Held() as held:
        # Nobody can tell from outside which thread reads next. (The two that were there first, and go on, are the event
        # loop's and the log's.)
        spent, is_stale = 600, False
        while not is_stale:
            held.add(*threads(hanging)[2:])
            interstat.insert("s1", input_tokens=1, output_tokens=0)
            answer = home.ask(messages.Remaining(run=run, wait_ms=300), 30)
            assert isinstance(answer, messages.RemainingAnswer), answer
            spend = answer.spend
            # Everybody is answered still, with the last known numbers, and told so.
            assert spend.spent == spent + (not spend.stale)
            spent, is_stale = spend.spent, spend.stale
        assert spend.stale_why == "interstat: slow: the present numbers were not there in time"

        def is_another() -> bool:
            held.take_note()
            return home.pid not in (0, hanging)

        wait_for(is_another, "another daemon")
    assert home.ok("remaining", "--run", run, *PATIENT) == str(1000 - spent - 1)
    assert home.restarts == 1
    assert any(line.startswith("no sign of life is sent to the watchdog stands_still=") for line in home.said())
    # What each of its threads was doing is in the journal.
    home.wait_until_said("most recent call first")
    interstat.close()
