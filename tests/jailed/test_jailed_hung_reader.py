"""The watchdog notices a source reader that hangs while the rest of the daemon keeps working."""

from fluxbudgetd.wire import messages
from harness.daemon import started, wait_for
from harness.held_thread import Held, threads
from harness.interstat import Interstat
from harness.jail_service import PATIENT, Account


def test_hanging_reader_makes_systemd_restart_the_daemon(home: Account) -> None:
    home.install("WatchdogSec=2s")
    interstat = Interstat(home.interstat)
    interstat.insert("s1", input_tokens=600, output_tokens=0)
    run = started(home, id="r1", session="s1", whole=True, token_budget=1000)
    assert home.spend(run).remaining == 400
    hanging = home.pid
    with Held() as held:
        # Which thread reads next is not visible from outside, so all are stopped but the first two: the event
        # loop's and the log's.
        spent = 600
        stale_why = None
        while stale_why is None:
            held.add(*threads(hanging)[2:])
            interstat.insert("s1", input_tokens=1, output_tokens=0)
            spent += 1
            answer = home.ask(messages.Remaining(run=run, wait_ms=300), 30)
            assert isinstance(answer, messages.RemainingAnswer), answer
            # Requests are still answered, with the last known numbers, marked as stale.
            stale_why = answer.spend.stale_why
            assert answer.spend.spent == spent or stale_why
        assert stale_why == "interstat: slow: current numbers were not available in time"

        def is_restarted() -> bool:
            held.reap()
            return home.pid not in (0, hanging)

        wait_for(is_restarted, "another daemon")
    assert home.ok("remaining", "--run", run, *PATIENT) == str(1000 - spent)
    assert home.restarts == 1
    assert any(line.startswith("the watchdog is not fed stalled=") for line in home.logged_messages())
    # The stack traces of the threads are in the journal.
    home.wait_until_logged("most recent call first")
    interstat.close()
