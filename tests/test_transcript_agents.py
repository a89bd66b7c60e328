"""The names of sub-agents, from the files beside their transcripts."""

import os

import pytest

from harness.transcript_reader import SESSION, Reader, replaced
from harness.transcripts import Transcript


@pytest.mark.parametrize(
    ("raw", "agent"),
    [
        (b'{"agentType":"fd-quality","description":"looks"}', "fd-quality"),
        (b'{"agentType":"interflux:fd-quality"}', "fd-quality"),
        (b'{"agentType":"other:fd-quality"}', "other:fd-quality"),
        ('{"agentType":"qualité"}'.encode(), "qualité"),
        (b'{"agentType":""}', "agent-a"),
        (b'{"agentType":"interflux:"}', "agent-a"),
        (b'{"agentType":5}', "agent-a"),
        (b'{"agentType":"\xff"}', "agent-a"),
        (b'{"description":"looks"}', "agent-a"),
        (b'{"agentType":"fd-qual', "agent-a"),
        (b"[1]", "agent-a"),
        (b"", "agent-a"),
        (b"[" * 60_000, "agent-a"),
        (b'{"agentType":"x"}' + b" " * 65_536, "agent-a"),
        (None, "agent-a"),
    ],
)
def test_agent_name(transcript: Transcript, reader: Reader, raw: bytes | None, agent: str) -> None:
    writer = transcript.agent("a", "deep")
    if raw is not None:
        writer.meta(raw)
    writer.response(tokens=(1, 0, 0, 0))
    assert reader.read().status.state == "ok"
    assert reader.agents == {agent: 1}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_agent_may_get_its_name_later(transcript: Transcript, reader: Reader, restart: bool, broken: bool) -> None:
    """Its usage then counts under the name, without reading the file again."""
    writer = transcript.agent("a")
    transcript.response("m1", tokens=(1, 0, 0, 0))
    writer.response("m2", tokens=(20, 0, 0, 0))
    if broken:
        writer.meta(b'{"agentT')
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-a": 20}
    if restart:
        reader.restart()
    writer.meta(agentType="interflux:fd-safety")
    assert reader.source.changed(SESSION)
    reader.read()
    assert (reader.received, reader.agents) == (2, {"main-session": 1, "fd-safety": 20})
    reader.settle()
    # It keeps the name if the file with the name is damaged or deleted.
    writer.meta(b"{")
    writer.response("m3", tokens=(300, 0, 0, 0))
    reader.read()
    writer.path.with_suffix(".meta.json").unlink()
    writer.response("m4", tokens=(4000, 0, 0, 0))
    reader.read()
    assert (reader.received, reader.agents) == (4, {"main-session": 1, "fd-safety": 4320})


def test_responses_of_a_replaced_file_get_the_name_too(transcript: Transcript, reader: Reader) -> None:
    one = transcript.agent("one")
    one.response("m1", tokens=(100, 0, 0, 0))
    transcript.agent("two").response("m2", tokens=(20, 0, 0, 0))
    reader.settle()
    replaced(one)
    reader.settle()
    assert reader.agents == {"agent-one": 107, "agent-two": 20}
    one.response("m3", tokens=(1000, 0, 0, 0))
    replaced(one)
    one.meta(agentType="fd-safety")
    reader.read()
    assert reader.agents == {"fd-safety": 107, "agent-two": 20}


def test_fifo_and_directory_give_no_name(transcript: Transcript, reader: Reader) -> None:
    for name, make in (("a", os.mkfifo), ("b", os.mkdir)):
        writer = transcript.agent(name)
        writer.response(name, tokens=(1, 0, 0, 0))
        make(writer.path.with_suffix(".meta.json"))
    assert reader.read().status.state == "ok"
    assert reader.agents == {"agent-a": 1, "agent-b": 1}
