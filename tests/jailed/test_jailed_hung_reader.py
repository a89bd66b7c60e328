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
        spent = 600
        stale_why = None
        while stale_why is None:
            held.add(*threads(hanging)[2:])
            interstat.insert("s1", input_tokens=1, output_tokens=0)
            spent += 1
            answer = home.ask(messages.Remaining(run=run, wait_ms=300), 30)
            assert isinstance(answer, messages.RemainingAnswer), answer
            # Everybody is answered still, with the last known numbers, and told so.
            stale_why = answer.spend.stale_why
            assert answer.spend.spent == spent or stale_why
        assert stale_why == "interstat: slow: the present numbers were not there in time"

        def is_another() -> bool:
            held.take_note()
            return home.pid not in (0, hanging)

        wait_for(is_another, "another daemon")
    assert home.ok("remaining", "--run", run, *PATIENT) == str(1000 - spent)
    assert home.restarts == 1
    assert any(line.startswith("the watchdog is not fed stalled=") for line in home.said())
    # What each of its threads was doing is in the journal.
    home.wait_until_said("most recent call first")
    interstat.close()
