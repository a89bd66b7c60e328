"""Sessions that hold other sessions' responses, in one run and in two."""

from harness.daemon import Daemon, Home, started
from harness.interstat import Interstat
from harness.live import transcript
from harness.transcripts import Tokens


def response(home: Home, session: str, message: str, tokens: Tokens, **fields: object) -> None:
    """Append a line of a response whose request id is the same in every session."""
    transcript(home, session).response(message, request=f"req_{message}", tokens=tokens, **fields)


def test_fork_counts_only_its_own_responses(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A fork's file begins with all the lines of the session that it was forked from."""
    first, second = started(home, session="a"), started(home, session="b")
    home.ok("run", "attach", "--run", first, "--session", "c")
    for message in ("m1", "m2"):
        for session in "abc":
            response(home, session, message, (1000, 500, 7, 0))
            assert (home.spent(first), home.spent(second)) in (((1500, 0), (3000, 0)))
    response(home, "b", "m3", (10, 5, 0, 0))
    response(home, "c", "m4", (20, 2, 0, 0))
    assert (home.spent(first), home.spent(second)) == (3022, 15)
    daemon.kill()
    home.start()
    assert (home.spent(first), home.spent(second)) == (3022, 15)


def test_response_belongs_to_the_session_that_was_attached_first(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """All sessions are read for the first time in one batch."""
    run = started(home)
    sessions = ("s5", "s3", "s1", "s4", "s2")
    for session in sessions:
        home.ok("run", "attach", "--run", run, "--session", session)
    daemon.stop()
    for session in sorted(sessions):
        response(home, session, "m1", (1000, 500, 0, 0))
    home.start()
    assert home.spent(run) == 1500
    assert {line.session: line.transcripts_total for line in home.details(run).sources if line.transcripts_total} == {
        "s5": 1500
    }


def test_fork_can_complete_a_response_of_the_first_session(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Its copy may be the final one. The other session's run gets what is missing, in memory and after a restart."""
    first, second = started(home, session="a"), started(home, session="b")
    response(home, "a", "m1", (1000, 1, 0, 0))
    assert home.spent(first) == 1001
    response(home, "b", "m1", (1000, 500, 0, 0))
    assert home.spent(second) == 0
    assert home.spent(first) == 1500
    daemon.kill()
    home.start()
    assert (home.spent(first), home.spent(second)) == (1500, 0)


def test_rows_of_a_fork_do_not_count_its_copies_again(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Interstat counts every line. The fork's transcript holds usage, so its rows never count."""
    run = started(home, session="a")
    response(home, "a", "m1", (1000, 500, 0, 0))
    assert home.spent(run) == 1500
    home.ok("run", "attach", "--run", run, "--session", "b")
    interstat.insert("b", input_tokens=1000, output_tokens=500)
    response(home, "b", "m1", (1000, 500, 0, 0))
    assert home.spent(run) == 1500
    daemon.kill()
    home.start()
    assert home.spent(run) == 1500


def test_line_that_says_it_was_forked_never_counts_for_the_fork(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """This holds even if the session that it comes from is unknown."""
    run = started(home, session="b")
    transcript(home, "b").line(
        b'{"type":"assistant","sessionId":"b","uuid":"u1","requestId":"r1","forkedFrom":{"sessionId":"a","messageUuid":"u1"},'
        b'"message":{"id":"m1","model":"claude-opus-4-6","usage":{"input_tokens":1000,"output_tokens":500}}}\n'
    )
    interstat.insert("b", input_tokens=1000, output_tokens=500)
    response(home, "b", "m2", (30, 3, 0, 0))
    assert home.spent(run) == 33
