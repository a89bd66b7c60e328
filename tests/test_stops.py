"""What each hook answers under each enforcement, for each state of the budget, session and permission mode."""

import itertools
import json
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, started
from harness.events import Subscriber
from harness.hooks import SILENT, Claude, HookOutput, launch_input, write_usage

BUDGET = 1_000_000_000
#: By state: what is spent before each hook.
SPENT = {"under": 100_000_000, "warning": 850_000_000, "exceeded": 1_100_000_000}
MODES = ("default", "plan", "acceptEdits", "auto", "dontAsk", "bypassPermissions")
#: Modes in which Claude Code shows a hook's question to the person.
ASKING = ("default", "plan", "acceptEdits", "auto")
TOOLS = ("Agent", "Task", "Workflow", "SendMessage")

#: By event and session: the outcome under soft and under hard enforcement, for each state of `SPENT`.
OUTCOMES: dict[tuple[str, str], dict[str, tuple[str, str, str]]] = {
    ("UserPromptSubmit", "main"): {"soft": ("", "warned", "warned"), "hard": ("", "warned", "blocked")},
    ("UserPromptSubmit", "notified"): {"soft": ("", "warned", "warned"), "hard": ("", "warned", "warned")},
    ("PostToolBatch", "main"): {"soft": ("", "warned", "warned"), "hard": ("", "warned", "ended")},
    ("PostToolBatch", "agent"): {"soft": ("", "warned", "warned"), "hard": ("", "warned", "warned")},
    ("PreToolUse", "main"): {"soft": ("", "", "questioned"), "hard": ("", "", "denied")},
    ("PreToolUse", "agent"): {"soft": ("", "", "questioned"), "hard": ("", "", "denied")},
    ("SubagentStart", "agent"): {"soft": ("", "warned", "warned"), "hard": ("", "warned", "to finish")},
    ("SubagentStop", "agent"): {"soft": ("", "", ""), "hard": ("", "", "")},
    ("Stop", "main"): {"soft": ("", "", ""), "hard": ("", "", "")},
    ("StopFailure", "main"): {"soft": ("", "", ""), "hard": ("", "", "")},
    ("StopFailure", "agent"): {"soft": ("", "", ""), "hard": ("", "", "")},
    ("SessionEnd", "main"): {"soft": ("", "", ""), "hard": ("", "", "")},
    ("PostToolUse", "main"): {"soft": ("", "", ""), "hard": ("", "", "")},
}


def outcome(event: str, output: HookOutput, *, is_attended: bool) -> str:
    """Return what an output means to the session; require that only the person reads how to lift a limit."""
    is_for_person = output.decision == "block" and is_attended
    model = (output.context, output.stop, "" if is_for_person else output.reason)
    assert not any("fluxbudgetctl" in text or "--budget" in text for text in model), output
    if output.stop:
        assert output == HookOutput(message=output.message, stop=output.stop)
        return "ended"
    if output.decision == "block":
        assert output == HookOutput(message=output.message, decision="block", reason=output.reason)
        assert ("fluxbudgetctl allow" in output.reason) == is_attended
        return "blocked"
    if output.decision:
        assert not output.context
        return {"deny": "denied", "ask": "asked"}[output.decision]
    if "Finish now" in output.context:
        return "to finish"
    if event == "PreToolUse" and output.context:
        return "launched with a warning"
    return "warned" if output.context else ""


def fields_of(event: str, session: str, tool: str) -> dict[str, Any]:
    """Return the fields that an event's input has in this session."""
    fields: dict[str, Any] = {"agent_id": "a1", "agent_type": "fd-quality"} if session == "agent" else {}
    if event == "PreToolUse":
        fields |= {"tool_name": tool, "tool_input": launch_input("fd-quality"), "tool_use_id": "toolu_1"}
    elif event == "UserPromptSubmit":
        fields["prompt"] = "<task-notification>\ndone" if session == "notified" else "go on"
    elif event == "StopFailure":
        fields["error"] = "rate_limit"
    return fields


@pytest.mark.parametrize("state", SPENT)
@pytest.mark.parametrize("enforcement", ["soft", "hard"])
def test_hook_by_enforcement_state_session_and_mode(home: Home, daemon: Daemon, enforcement: str, state: str) -> None:
    run = started(home, session="payer", token_budget=BUDGET, enforcement=enforcement)
    write_usage(home, SPENT[state], session="payer")
    for number, ((event, session), mode, attended) in enumerate(itertools.product(OUTCOMES, MODES, (True, False))):
        for tool in TOOLS if event == "PreToolUse" else ("",):
            claude = Claude(home, f"s{number}{tool}")
            claude.permission_mode, claude.is_attended = mode, attended
            output = claude.call(event, hints=messages.Hints(run=run), **fields_of(event, session, tool))
            expected = OUTCOMES[event, session][enforcement][[*SPENT].index(state)]
            if expected == "questioned":
                expected = "asked" if attended and mode in ASKING else "launched with a warning"
            case = event, session, mode, attended, tool
            assert outcome(event, output, is_attended=attended) == expected, (case, output)


def exhausted(home: Home, **fields: Any) -> Claude:
    """Start a run under an exhausted hard budget; return its session."""
    started(home, id="r1", session="s1", token_budget=1000, enforcement="hard", **fields)
    write_usage(home, 1200)
    return Claude(home)


CAUSE = "fluxbudget: the budget of run r1 is exhausted (1 200 of 1 000 billing tokens spent)"
ADVICE = (
    "to let run r1 go on, use `fluxbudgetctl allow --run r1`"
    " or `fluxbudgetctl run set --run r1 --budget N` in your own terminal"
)
REMEDY = f"fluxbudget: {ADVICE}"


def test_words_of_a_stop(home: Home, daemon: Daemon) -> None:
    """The model reads what happened, the person how to go on. (From a real client.)"""
    claude = exhausted(home)
    prompt = claude.run("UserPromptSubmit", prompt="go on")
    reason = f"{CAUSE}; the prompt was not sent"
    assert prompt == HookOutput(message=REMEDY, decision="block", reason=reason)
    claude.is_attended = True
    assert claude.call("UserPromptSubmit", prompt="go on").reason == f"{reason}; {ADVICE}"
    assert claude.run("PostToolBatch") == HookOutput(message=REMEDY, stop=f"{CAUSE}; the turn was ended")
    launch = claude.run("PreToolUse", tool_name="Workflow", tool_input={})
    advice = "do not launch sub-agents; finish with what you have, and say that the budget is exhausted"
    assert launch == HookOutput(message=REMEDY, decision="deny", reason=f"{CAUSE}; {advice}")
    begun = claude.run("SubagentStart", agent_id="a1", agent_type="Explore")
    assert begun == HookOutput(context=f"{CAUSE}. Finish now, and report what you have.")


def test_stops_are_events(home: Home, daemon: Daemon) -> None:
    claude = exhausted(home)
    with Subscriber(home) as stream:
        for _ in range(3):
            assert claude.call("UserPromptSubmit", prompt="go on").decision == "block"
        stopped = stream.until("turn.stopped")
        assert claude.call("PostToolBatch").stop
        ended = stream.until("turn.stopped")
        assert claude.launch("fd-safety").decision == "deny"
        denied = stream.until("launch.denied")
        claude.call("StopFailure", error="overloaded", last_assistant_message="secret")
        claude.call("StopFailure", error="it is all very secret")
        failed = [stream.until("turn.failed") for _ in range(2)]
    numbers = {"phase": "brainstorm", "spent": 1200, "budget": 1000}
    plain = {"session": "s1", "agent": None, **numbers}
    assert {**stopped.data, "count": 1} == {**plain, "event": "UserPromptSubmit", "count": 1}
    assert ended.data == {**plain, "event": "PostToolBatch", "count": 1}
    assert denied.data.items() >= {"session": "s1", "tool": "Agent", "agent": "fd-safety", **numbers}.items()
    assert [each.data["error"] for each in failed] == ["overloaded", "unknown"]
    assert "secret" not in json.dumps([each.data for each in failed])


def test_raised_budget_ends_the_stop(home: Home, daemon: Daemon) -> None:
    claude = exhausted(home)
    assert claude.call("PostToolBatch").stop
    home.ok("run", "set", "--run", "r1", "--budget", "2000")
    assert not claude.call("PostToolBatch").stop
    home.ok("run", "set", "--run", "r1", "--budget", "1200")
    assert claude.call("PostToolBatch").stop
    home.ok("run", "set", "--run", "r1", "--enforcement", "soft")
    assert not claude.call("PostToolBatch").stop


def test_usage_written_just_before_stops(home: Home, daemon: Daemon) -> None:
    started(home, id="r1", session="s1", token_budget=1000, enforcement="hard")
    claude = Claude(home)
    write_usage(home, 999)
    assert not claude.call("PostToolBatch").stop
    write_usage(home, 1, message="m2")
    assert claude.call("PostToolBatch").stop


def test_reservations_do_not_stop_the_turn(home: Home, daemon: Daemon) -> None:
    started(home, id="r1", session="s1", token_budget=50_000, enforcement="hard")
    claude = Claude(home)
    assert claude.launch() == SILENT
    write_usage(home, 20_000)
    assert home.json("remaining", "--run", "r1")["remaining"] == 0
    assert claude.call("PostToolBatch") == SILENT
    assert claude.call("UserPromptSubmit", prompt="go on") == SILENT
    assert claude.launch("fd-safety").decision == "deny"


def test_prompt_that_is_blocked_leaves_the_warning(home: Home, daemon: Daemon) -> None:
    """The model has not read anything, so it is warned once the run goes on."""
    claude = exhausted(home)
    assert claude.call("UserPromptSubmit", prompt="go on").decision == "block"
    home.ok("allow", "--run", "r1")
    assert "budget exceeded" in claude.call("UserPromptSubmit", prompt="go on").context
