"""Where a session's transcripts are found."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.wire.text import fold
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript, assistant_line, encoded


def test_every_place(claude: Path, main: Transcript, reader: Reader) -> None:
    """Any project, any depth below `subagents`; nothing else."""
    main.response("m1", tokens=(1, 0, 0, 0))
    elsewhere = Transcript(claude, SESSION, "-other-project")
    elsewhere.response("m2", tokens=(20, 0, 0, 0))
    elsewhere.agent("x", "deep", "deeper").response("m3", tokens=(300, 0, 0, 0))
    only_agents = Transcript(claude, SESSION, "-third-project")
    only_agents.agent("y").response("m4", tokens=(4000, 0, 0, 0))
    Transcript(claude, "another session").response("m5", tokens=(50_000, 0, 0, 0))
    for name in ("notes.jsonl", "agent-1.json", "agent.jsonl"):
        (main.subagents / "more").mkdir(parents=True, exist_ok=True)
        (main.subagents / "more" / name).write_bytes(encoded(assistant_line(SESSION, name, tokens=(7, 7, 7, 7))))
    reader.read()
    assert reader.total == 4321
    assert reader.agents == {"main-session": 21, "agent-x": 300, "agent-y": 4000}


@pytest.mark.parametrize("prepare", ["nothing", "claude", "projects", "project", "session", "subagents"])
def test_what_comes_later_is_noticed(claude: Path, main: Transcript, reader: Reader, prepare: str) -> None:
    """However little of the tree was there."""
    places = {
        "claude": claude,
        "projects": claude / "projects",
        "project": main.path.parent,
        "session": main.path.parent / SESSION,
        "subagents": main.subagents,
    }
    if prepare in places:
        places[prepare].mkdir(parents=True)
    reader.settle()
    writers = [main.agent("a"), main.agent("b", "deep"), main, main.agent("c", "deep")]
    for number, writer in enumerate(writers, start=1):
        assert not reader.source.changed(SESSION)
        writer.response(f"m{number}", tokens=(1, 0, 0, 0))
        assert reader.source.changed(SESSION)
        reader.settle()
        assert reader.total == number


def test_main_file_after_sub_agents_directory(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    main.subagents.parent.mkdir()
    reader.settle()
    main.agent("a").response("m2", tokens=(20, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 21


def test_a_directory_that_was_just_listed_is_listed_again(main: Transcript, reader: Reader) -> None:
    """Two files within one tick of the directory's clock: the second one is not overlooked."""
    main.response("m0")
    for number in range(200):
        main.agent(f"{number:03}a").response(f"a{number}", tokens=(1, 0, 0, 0))
        reader.read()
        main.agent(f"{number:03}b").response(f"b{number}", tokens=(1, 0, 0, 0))
        if reader.source.changed(SESSION):
            reader.read()
        assert reader.total == 2 * (number + 1)


@pytest.mark.parametrize("session", ["", ".", "..", "a/b", "../x", "a\0b", "\ud800", "x" * 250, "nobody's"])
def test_sessions_without_files(claude: Path, session: str) -> None:
    Transcript(claude, SESSION).response()
    (claude / "projects" / "x.jsonl").write_bytes(encoded(assistant_line(SESSION)))
    source = TranscriptSource(str(claude))
    for _ in range(2):
        reading = source.read(session)
        assert (reading.copies, reading.files, reading.status.state) == ((), (), "absent")
        assert reading.status.notes == ()


@pytest.mark.parametrize("raw", [b'it\'s "odd" *?[x]', b"\xff\xfe", "é\uef80".encode(), b"x" * 249])
def test_odd_session_ids(claude: Path, raw: bytes) -> None:
    """They are foreign bytes; what a shell would expand is not expanded."""
    writer = Transcript(claude, os.fsdecode(raw))
    reader = Reader(claude, fold(raw))
    writer.line(encoded(assistant_line("s", "m1", tokens=(1, 0, 0, 0))))
    writer.agent(os.fsdecode(b"\xfe")).line(encoded(assistant_line("s", "m2", tokens=(20, 0, 0, 0))))
    reader.read()
    assert reader.agents == {"main-session": 1, fold(b"agent-\xfe"): 20}
    paths = [file.path for file in reader.files]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(paths)) == paths
    reader.restart()
    writer.line(encoded(assistant_line("s", "m3", tokens=(300, 0, 0, 0))))
    assert reader.read().reset is None
    assert (reader.total, reader.came) == (321, 3)


def test_symbolic_links(claude: Path, main: Transcript, reader: Reader, tmp_path: Path) -> None:
    """A link to a file below the Claude directory counts, once; any other, and any link to a directory, does not."""
    main.response("m1", tokens=(1, 0, 0, 0))
    agent = main.agent("a")
    agent.response("m2", tokens=(20, 0, 0, 0))
    kept = claude / "kept" / "b"
    outside = tmp_path / "outside"
    for place, message, size in ((kept, "m3", 300), (outside / "agent-c.jsonl", "m4", 4000)):
        place.parent.mkdir()
        place.write_bytes(encoded(without_name(message, size)))
    for number in range(20):
        (main.subagents / f"agent-{number}.jsonl").symlink_to(agent.path)
    (main.subagents / "agent-b.jsonl").symlink_to(kept)
    (main.subagents / "agent-c.jsonl").symlink_to(outside / "agent-c.jsonl")
    (main.subagents / "agent-d.jsonl").symlink_to("agent-d.jsonl")
    (main.subagents / "agent-e.jsonl").symlink_to("nothing")
    (main.subagents / "dir").symlink_to(outside)
    (main.subagents / "loop").symlink_to(main.subagents)
    (claude / "projects" / "linked").symlink_to(main.path.parent)
    reading = reader.read()
    assert reader.agents == {"main-session": 1, "agent-a": 20, "agent-b": 300}
    assert reading.status.state == "ok"
    notes = " ".join(reading.status.notes)
    assert "agent-c.jsonl: leads outside the Claude directory" in notes
    assert "agent-d.jsonl: broken symbolic link" in notes
    assert "agent-e.jsonl: broken symbolic link" in notes
    with kept.open("ab") as file:
        file.write(encoded(without_name("m5", 1000)))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 1321


def without_name(message: str, size: int) -> dict[str, Any]:
    return assistant_line(SESSION, message, tokens=(size, 0, 0, 0))


def test_claude_directory_behind_a_link(claude: Path, main: Transcript, tmp_path: Path) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    link = tmp_path / "link"
    link.symlink_to(claude)
    reader = Reader(link)
    reader.source.name(SESSION, str(link / "projects" / main.path.parent.name / main.path.name))
    reader.source.name(SESSION, str(main.path))
    reader.read()
    assert (reader.total, len(reader.files)) == (1, 1)


@pytest.mark.parametrize(("place", "total"), [("projects", 0), ("session", 1), ("subagents", 1)])
def test_directories_that_are_links_are_named(
    claude: Path, main: Transcript, reader: Reader, tmp_path: Path, place: str, total: int
) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    main.agent("a").response("m2", tokens=(20, 0, 0, 0))
    path = {"projects": claude / "projects", "session": main.subagents.parent, "subagents": main.subagents}[place]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    reading = reader.read()
    assert reader.total == total
    assert reading.status.notes == (f"{path}: a symbolic link to a directory, which is not followed",)


def test_a_link_that_leads_nowhere_and_goes(main: Transcript, reader: Reader) -> None:
    main.agent("a").response("m1", tokens=(1, 0, 0, 0))
    main.path.symlink_to(main.path.name)
    reader.settle()
    assert "broken symbolic link" in " ".join(reader.read().status.notes)
    main.path.unlink()
    assert reader.source.changed(SESSION)
    assert reader.read().status.notes == ()


def test_positions_of_files_elsewhere(claude: Path, main: Transcript, reader: Reader, tmp_path: Path) -> None:
    """What was read below another Claude directory keeps what it gave, and is not read on."""
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    moved = Reader(tmp_path / "other")
    moved.source.restore(SESSION, reader.files)
    main.response("m2", tokens=(20, 0, 0, 0))
    reading = moved.read()
    assert (reading.copies, reading.files, reading.status.state) == ((), reader.files, "absent")
    Transcript(moved.claude, SESSION).response("m3", tokens=(300, 0, 0, 0))
    moved.settle()
    assert (moved.total, [file.number for file in moved.files]) == (300, [1, 2])


def test_too_deep(main: Transcript, reader: Reader) -> None:
    main.agent("in", *"abcdefghijklmnop").response("m1", tokens=(1, 0, 0, 0))
    main.agent("out", *"abcdefghijklmnopq").response("m2", tokens=(20, 0, 0, 0))
    reading = reader.read()
    assert reader.total == 1
    assert "nested too deeply" in " ".join(reading.status.notes)


def test_too_many(main: Transcript, reader: Reader) -> None:
    """Those that were read before stay; what is left out is counted."""
    main.response("m0", tokens=(1, 0, 0, 0))
    main.subagents.mkdir(parents=True)
    for number in range(10_005):
        (main.subagents / f"agent-{number}.jsonl").write_bytes(b"")
    reading = reader.read()
    assert len(reading.files) == 10_000
    assert "6 are left out" in " ".join(reading.status.notes)
    reader.restart()
    reader.read()
    assert {file.path for file in reader.files} == {file.path for file in reading.files}


def test_directories_to_watch(claude: Path, main: Transcript, reader: Reader) -> None:
    """Each is there; together they are all in which the session's files may grow or come to be."""
    assert reader.source.directories(SESSION) == ()
    reader.read()
    assert reader.source.directories(SESSION) == ()
    other = claude / "projects" / "other"
    other.mkdir(parents=True)
    reader.read()
    assert set(reader.source.directories(SESSION)) == {str(claude / "projects"), str(other)}
    main.response()
    main.agent("a", "deep").response()
    reader.read()
    expected = {claude / "projects", main.path.parent, main.subagents.parent, main.subagents, main.subagents / "deep"}
    assert set(reader.source.directories(SESSION)) == {str(path) for path in expected}
