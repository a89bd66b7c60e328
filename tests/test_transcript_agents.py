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
def test_agents_names(main: Transcript, reader: Reader, raw: bytes | None, agent: str) -> None:
    writer = main.agent("a", "deep")
    if raw is not None:
        writer.meta(raw)
    writer.response(tokens=(1, 0, 0, 0))
    assert reader.read().status.state == "ok"
    assert reader.agents == {agent: 1}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_name_that_comes_later(main: Transcript, reader: Reader, restart: bool, broken: bool) -> None:
    """What the agent has given so far is given again, under its name; the other files are left alone."""
    writer = main.agent("a")
    main.response("m1", tokens=(1, 0, 0, 0))
    writer.response("m2", tokens=(20, 0, 0, 0))
    if broken:
        writer.meta(b'{"agentT')
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-a": 20}
    if restart:
        reader.restart()
    writer.meta(agentType="interflux:fd-safety")
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert set(reading.reset or ()) == {file.number for file in reader.files if file.agent == "fd-safety"}
    assert reader.agents == {"main-session": 1, "fd-safety": 20}
    reader.settle()
    # It keeps the name, whatever becomes of the companion.
    writer.meta(b"{")
    writer.response("m3", tokens=(300, 0, 0, 0))
    assert reader.read().reset is None
    writer.path.with_suffix(".meta.json").unlink()
    writer.response("m4", tokens=(4000, 0, 0, 0))
    assert reader.read().reset is None
    assert reader.agents == {"main-session": 1, "fd-safety": 4320}


def test_new_name_of_another_file(main: Transcript, reader: Reader) -> None:
    """Named anew and replaced at once: everything is read again."""
    one, two = main.agent("one"), main.agent("two")
    one.response("both", tokens=(100, 0, 0, 0))
    two.response("both", tokens=(90, 0, 0, 0))
    reader.settle()
    replaced(one)
    one.meta(agentType="fd-safety")
    assert set(reader.read().reset or ()) == {1, 2}
    assert reader.agents == {"fd-safety": 7, "agent-two": 90}


def test_what_is_no_companion(main: Transcript, reader: Reader) -> None:
    """A FIFO or a directory in its place is as good as none."""
    for name, make in (("a", os.mkfifo), ("b", os.mkdir)):
        writer = main.agent(name)
        writer.response(name, tokens=(1, 0, 0, 0))
        make(writer.path.with_suffix(".meta.json"))
    assert reader.read().status.state == "ok"
    assert reader.agents == {"agent-a": 1, "agent-b": 1}
