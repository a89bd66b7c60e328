"""Sessions of one process: what they say, run and start counts exactly once."""

from dataclasses import replace

import pytest

from harness.claude_code.script import Iteration, Turn, Usage, agent, bash, message, says, text, thinking, tool
from harness.claude_code.stage import Stage, handed_out

pytestmark = pytest.mark.claude

WORKFLOW = """
export const meta = {name: 'pair', description: 'Two agents', phases: [{title: 'Work'}]}
phase('Work')
return await parallel([() => agent('Play step', {label: 'a'}), () => agent('Play step', {label: 'b'})])
"""


def add_worker(stage: Stage, kind: str = "general-purpose") -> None:
    """Add a conversation of a sub-agent: `Play worker`."""
    stage.script.add("worker", says("Working.", bash("echo work")), says("Worked."), agent=kind)


def test_text(stage: Stage) -> None:
    stage.play(stage.script.add("hello", says("Hello.")))


def test_several_blocks_and_tool_calls(stage: Stage) -> None:
    """Claude Code writes a line per block, each with the usage of the whole response."""
    stage.play(
        stage.script.add(
            "blocks",
            Turn((thinking("Hm."), text("One."), text("Two."), bash("echo a"), bash("echo b"))),
            says("One fails.", bash("exit 3")),
            Turn((bash("sleep 0.1; echo c"),)),
            says("Done."),
        )
    )


def test_cache_writes_of_both_lifetimes(stage: Stage) -> None:
    """Each may occur alone, and without any other tokens."""
    stage.play(
        stage.script.add(
            "cache",
            says("a", bash("true"), usage=Usage(input=3, output=5, cache_5m=7_000)),
            says("b", bash("true"), usage=Usage(input=3, output=5, cache_read=7_000, cache_1h=900)),
            says("c", bash("true"), usage=Usage(input=0, output=1, cache_5m=11, cache_1h=13)),
            says("d", usage=Usage(input=2, output=1, cache_read=7_924)),
        )
    )


def test_iterations_that_the_top_level_omits(stage: Stage) -> None:
    """An advisor's answer counts for the advisor's model; a compaction for the model that was asked."""
    advised = Iteration("advisor_message", Usage(150_000, 7_000, cache_read=60, cache_5m=20, cache_1h=30), "claude-a-1")
    compacted = Iteration("compaction", Usage(180_000, 3_500))
    stage.play(
        stage.script.add(
            "iterations",
            says("Asks.", bash("true"), iterations=(advised,)),
            says("Compacts.", bash("true"), iterations=(compacted, advised)),
            says("Done."),
        )
    )


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_sub_agents(stage: Stage, background: bool) -> None:
    add_worker(stage)
    both = [agent("Play worker", background=background) for _ in range(2)]
    stage.play(stage.script.add("two", says("Starting both.", *both), says("Started."), says("Noted.")))


def test_nested_sub_agents_of_several_types_and_models(stage: Stage) -> None:
    add_worker(stage, "Explore")
    stage.script.add(
        "outer", says("Asks.", agent("Play worker", kind="Explore")), says("Told."), agent="general-purpose"
    )
    outer = agent("Play outer")
    outer["input"]["model"] = "haiku"
    stage.play(stage.script.add("nested", says("Delegates.", outer), says("Done.")))
    assert len({response.model for response in stage.api.responses}) > 1


def test_finished_sub_agent_that_gets_a_message(stage: Stage) -> None:
    """It continues in the same transcript."""
    add_worker(stage)
    stage.play(
        stage.script.add(
            "message",
            says("Starts.", agent("Play worker")),
            says("Asks again.", message("Play worker")),
            says("Asked."),
            says("Noted."),
        )
    )


def test_sub_agent_that_is_a_fork_of_the_conversation(stage: Stage) -> None:
    """Its transcript starts with the parent's conversation, which does not count again."""
    add_worker(stage, "fork")
    stage.play(
        stage.script.add("split", says("Forks.", agent("Play worker", kind="fork")), says("Forked."), says("Noted."))
    )


def test_workflow(stage: Stage) -> None:
    stage.script.add("step", says("Steps.", bash("echo step")), says("Stepped."), agent="workflow-subagent")
    stage.play(
        stage.script.add("flow", says("Starts.", tool("Workflow", script=WORKFLOW)), says("Started."), says("Noted."))
    )


def test_error_that_is_retried(stage: Stage) -> None:
    stage.play(stage.script.add("retried", says("After an error.", bash("true"), fails=(529,)), says("Done.")))


def test_error_that_ends_the_session(stage: Stage) -> None:
    """Claude Code writes the error as a response of the model `<synthetic>`."""
    stage.play(stage.script.add("failing", says("Begins.", bash("true")), says("", fails=(400,) * 9)), fails=True)


def test_stream_that_breaks_off_in_a_block(stage: Stage) -> None:
    """It is requested again. Claude Code writes only the complete response."""
    stage.play(
        stage.script.add("broken", Turn((text("Begun."), text("More.")), breaks_after=3)),
        unwritten=["broken off"],
    )


def test_stream_that_breaks_off_after_a_block(stage: Stage) -> None:
    """Claude Code may have written that block already, with the usage that the stream began with. Then it counts."""
    stage.claude.run(stage.script.add("broken", Turn((text("Begun."), text("More.")), breaks_after=5)))
    broken, complete = stage.api.responses
    assert (broken.kind, complete.kind) == ("broken off", "turn")
    begun = replace(broken, usage=replace(broken.usage, output=1))
    assert stage.totals() in (handed_out([complete]), handed_out([begun, complete]))


def test_compaction(stage: Stage) -> None:
    """Claude Code does not write the request for the summary. It starts one when the context is nearly full."""
    stage.play(
        stage.script.add(
            "long",
            says("Reads a lot.", bash("true"), usage=Usage(input=990_000, output=400)),
            says("Continues.", bash("true")),
            says("Done."),
        ),
        unwritten=["summary"],
    )


def test_doctor_agrees_with_claude_code(stage: Stage) -> None:
    """Claude Code writes sums of its own at the end of a session, and nothing is wrong."""
    add_worker(stage)
    session = stage.play(stage.script.add("one", says("Starts.", agent("Play worker")), says("Done.")))
    total = stage.totals().all.total
    found = stage.home.ok("doctor").splitlines()
    assert f"session   {session.id}: {total} in the transcripts, {total} by Claude Code's own count" in found
    assert "no problems found" in found
