"""What hooks answer for a stopped run: the conditions, the words, and the answers in Claude Code's format.

The daemon and the client share this module, because the client decides while the daemon is away. It imports next to
nothing. An answer is a dictionary, to be encoded as JSON.

There are two audiences. What the model reads (`additionalContext`, `permissionDecisionReason`, `stopReason`) says that
the budget is exhausted and what the model should do, but never how to lift the limit. Only what the person alone sees
says that: `systemMessage`, and the `reason` of a prompt that is blocked where a person is there.
"""

from fluxbudgetd.wire.short import grouped

#: The tools that launch or wake sub-agents (`Task` is the older name of `Agent`).
LAUNCH_TOOLS = ("Agent", "Task", "Workflow", "SendMessage")
#: `$CLAUDE_CODE_ENTRYPOINT` of sessions that a person types into.
_ATTENDED = ("cli", "claude-vscode")
#: A prompt with this beginning reports the end of a background task. Blocking it would lose the task's result.
NOTIFICATION = "<task-notification>"


def is_attended(attended: str | None, entrypoint: str | None) -> bool:
    """Return True if Claude Code says that a person is there.

    It says so with $CLAUDE_CODE_SESSION_ATTENDED. Older versions only say how they were started, with
    $CLAUDE_CODE_ENTRYPOINT.
    """
    return attended == "1" if attended else entrypoint in _ATTENDED


def exhausted(run: str, spent: int, limit: int, basis: str) -> str:
    """Return what stops a run, without saying how to go on. `limit` is what the run may spend, in tokens."""
    amounts = f"{grouped(spent)} of {grouped(limit)} {basis} tokens spent"
    return f"the budget of run {run} is exhausted ({amounts})"


def ways_to_continue(run: str) -> str:
    """Return the commands with which the person can let a stopped run go on."""
    return f"`fluxbudgetctl allow --run {run}` or {way_to_raise(run)} in your own terminal"


def way_to_raise(run: str) -> str:
    """Return the command with which the person can raise a run's budget."""
    return f"`fluxbudgetctl run set --run {run} --budget N`"


def to_continue(run: str) -> str:
    """Return what the person can do when a run is stopped."""
    return f"to let run {run} go on, use {ways_to_continue(run)}"


def no_launch(cause: str) -> str:
    """Return why a sub-agent was not launched, for the model. `cause` is what `exhausted` returns."""
    return f"{cause}; do not launch sub-agents; finish with what you have, and say that the budget is exhausted"


def blocked_prompt(cause: str, advice: str, *, is_attended: bool) -> dict[str, object]:
    """Return the answer that keeps a prompt from being sent.

    `cause` is what `exhausted` returns; `advice` is for the person. Claude Code shows only the `reason`, which the
    session's own model does not read. But the model of an outer session may read what its `claude -p` prints, so the
    reason has the advice only if a person is there.
    """
    reason = f"fluxbudget: {cause}; the prompt was not sent"
    return {
        "decision": "block",
        "reason": f"{reason}; {advice}" if is_attended else reason,
        "systemMessage": f"fluxbudget: {advice}",
    }


def ended_turn(cause: str, advice: str) -> dict[str, object]:
    """Return the answer that ends the main session's turn."""
    return {
        "continue": False,
        "stopReason": f"fluxbudget: {cause}; the turn was ended",
        "systemMessage": f"fluxbudget: {advice}",
    }


def ended_subagent(name: str, run: str, cause: str) -> dict[str, object]:
    """Return the answer that ends a sub-agent."""
    text = f"fluxbudget: the sub-agent {name} of run {run} was stopped: {cause}"
    return {"continue": False, "stopReason": text, "systemMessage": text}


def finish(event: str, cause: str, message: str | None = None) -> dict[str, object]:
    """Return the answer that tells a sub-agent to finish."""
    return context(event, f"fluxbudget: {cause}. Finish now, and report what you have.", message)


def denied_launch(cause: str, advice: str) -> dict[str, object]:
    """Return the answer that denies a launch under an exhausted budget."""
    return denial(no_launch(cause), f"fluxbudget: {advice}")


def denial(reason: str, message: str) -> dict[str, object]:
    """Return the answer that denies a tool call. `reason` is for the model, `message` for the person."""
    return permission("deny", reason, message)


def permission(decision: str, reason: str, message: str) -> dict[str, object]:
    """Return the answer that decides about a tool call: `allow`, `ask` or `deny`."""
    return {
        "systemMessage": message,
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": decision,
            "permissionDecisionReason": f"fluxbudget: {reason}",
        },
    }


def context(event: str, text: str, message: str | None) -> dict[str, object]:
    """Return the answer that adds a text to what the model reads, and shows a message to the person."""
    shown = {} if message is None else {"systemMessage": message}
    return {**shown, "hookSpecificOutput": {"hookEventName": event, "additionalContext": text}}


def without_daemon(run: str, why: str) -> str:
    """Return what the person reads when a run stays stopped because the daemon gave no answer; `why` says why not."""
    return (
        f"the daemon gave no answer ({why}), and according to the last known numbers, run {run} is stopped; start"
        f" the daemon (`systemctl --user restart fluxbudgetd`, or `fluxbudgetd`), then use {ways_to_continue(run)}"
    )


def unanswered_launch(why: str) -> dict[str, object]:
    """Return the answer that denies a launch because the daemon gave no answer, as the person has asked for."""
    message = f"fluxbudget: the daemon gave no answer ({why}), and FLUXBUDGET_FAIL_CLOSED=1: see `fluxbudgetctl doctor`"
    return denial("the budget cannot be checked, so no sub-agents are launched; go on without them", message)
