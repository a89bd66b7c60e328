"""The protocol's version, the exit codes, and the error codes of answers with their exit codes."""

VERSION = 1

OK = 0
REFUSED = 1
NO_RUN = 3
USAGE = 64
BAD_INPUT = 65
UNREACHABLE = 69
INTERNAL = 70
NO_ANSWER = 75
BAD_CONFIG = 78

#: error code in an answer → (exit code of the client, what it means)
ERROR_CODES: dict[str, tuple[int, str]] = {
    "no_run": (NO_RUN, "no run has that name, or the hints lead to no run, or to several"),
    "bad_request": (BAD_INPUT, "the message is not a request of this protocol"),
    "bad_input": (BAD_INPUT, "a field has a value that is not allowed"),
    "refused": (REFUSED, "a hard limit may not be loosened from inside a session"),
    "conflict": (BAD_INPUT, "the request contradicts what exists already"),
    "unavailable": (UNREACHABLE, "the daemon that was started for this request cannot serve; the message says why"),
    "busy": (UNREACHABLE, "the daemon has reached its limit of connections or bytes"),
    "forbidden": (UNREACHABLE, "the peer is another user"),
    "too_large": (BAD_INPUT, "a frame's length is zero or above 1 MiB; the connection is closed"),
    "answer_too_large": (INTERNAL, "the answer does not fit into a frame"),
    "timeout": (NO_ANSWER, "a frame did not arrive in time, or a request took too long"),
    "unknown_op": (INTERNAL, "this daemon does not know the operation (it is older than its client)"),
    "unsupported_version": (INTERNAL, "this daemon does not speak the request's protocol version"),
    "bad_config": (BAD_CONFIG, "a configuration file is wrong; the message names the file and the line or key"),
    "ledger": (INTERNAL, "the ledger could not be written; nothing was changed"),
    "internal": (INTERNAL, "a defect; the daemon's log has the details"),
}
