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


def test_transcripts_in_every_place_are_found(claude_dir: Path, transcript: Transcript, reader: Reader) -> None:
    """They are found in any project and at any depth below `subagents`, and nowhere else."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    elsewhere = Transcript(claude_dir, SESSION, "-other-project")
    elsewhere.response("m2", tokens=(20, 0, 0, 0))
    elsewhere.agent("x", "deep", "deeper").response("m3", tokens=(300, 0, 0, 0))
    only_agents = Transcript(claude_dir, SESSION, "-third-project")
    only_agents.agent("y").response("m4", tokens=(4000, 0, 0, 0))
    Transcript(claude_dir, "another session").response("m5", tokens=(50_000, 0, 0, 0))
    for name in ("notes.jsonl", "agent-1.json", "agent.jsonl"):
        (transcript.subagents / "more").mkdir(parents=True, exist_ok=True)
        (transcript.subagents / "more" / name).write_bytes(encoded(assistant_line(SESSION, name, tokens=(7, 7, 7, 7))))
    reader.read()
    assert reader.total == 4321
    assert reader.agents == {"main-session": 21, "agent-x": 300, "agent-y": 4000}


@pytest.mark.parametrize("prepare", ["nothing", "claude", "projects", "project", "session", "subagents"])
def test_later_transcripts_are_noticed(claude_dir: Path, transcript: Transcript, reader: Reader, prepare: str) -> None:
    """They are noticed even if none of their directories existed before."""
    places = {
        "claude": claude_dir,
        "projects": claude_dir / "projects",
        "project": transcript.path.parent,
        "session": transcript.path.parent / SESSION,
        "subagents": transcript.subagents,
    }
    if prepare in places:
        places[prepare].mkdir(parents=True)
    reader.settle()
    writers = [transcript.agent("a"), transcript.agent("b", "deep"), transcript, transcript.agent("c", "deep")]
    for number, writer in enumerate(writers, start=1):
        assert not reader.source.changed(SESSION)
        writer.response(f"m{number}", tokens=(1, 0, 0, 0))
        assert reader.source.changed(SESSION)
        reader.settle()
        assert reader.total == number


def test_sub_agent_in_a_directory_made_after_the_main_file_is_noticed(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    transcript.subagents.parent.mkdir()
    reader.settle()
    transcript.agent("a").response("m2", tokens=(20, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 21


def test_directory_that_has_just_changed_is_listed_again(transcript: Transcript, reader: Reader) -> None:
    """A second file within one tick of the directory's clock is not missed."""
    transcript.response("m0")
    for number in range(200):
        transcript.agent(f"{number:03}a").response(f"a{number}", tokens=(1, 0, 0, 0))
        reader.read()
        transcript.agent(f"{number:03}b").response(f"b{number}", tokens=(1, 0, 0, 0))
        if reader.source.changed(SESSION):
            reader.read()
        assert reader.total == 2 * (number + 1)


@pytest.mark.parametrize("session", ["", ".", "..", "a/b", "../x", "a\0b", "\ud800", "x" * 250, "unknown"])
def test_session_without_files_is_absent(claude_dir: Path, session: str) -> None:
    Transcript(claude_dir, SESSION).response()
    (claude_dir / "projects" / "x.jsonl").write_bytes(encoded(assistant_line(SESSION)))
    source = TranscriptSource(str(claude_dir))
    for _ in range(2):
        reading = source.read(session)
        assert (reading.copies, reading.files, reading.status.state) == ((), (), "absent")
        assert reading.status.notes == ()


@pytest.mark.parametrize("raw", [b'it\'s "odd" *?[x]', b"\xff\xfe", "é\uef80".encode(), b"x" * 249])
def test_odd_session_id_names_its_files(claude_dir: Path, raw: bytes) -> None:
    """Any bytes may be in a session id; patterns are not expanded."""
    writer = Transcript(claude_dir, os.fsdecode(raw))
    reader = Reader(claude_dir, fold(raw))
    writer.line(encoded(assistant_line("s", "m1", tokens=(1, 0, 0, 0))))
    writer.agent(os.fsdecode(b"\xfe")).line(encoded(assistant_line("s", "m2", tokens=(20, 0, 0, 0))))
    reader.read()
    assert reader.agents == {"main-session": 1, fold(b"agent-\xfe"): 20}
    paths = [file.path for file in reader.files]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(paths)) == paths
    reader.restart()
    writer.line(encoded(assistant_line("s", "m3", tokens=(300, 0, 0, 0))))
    reader.read()
    assert (reader.total, reader.received) == (321, 3)


def test_symbolic_link_counts_only_to_a_file_below_the_claude_directory(
    claude_dir: Path, transcript: Transcript, reader: Reader, tmp_path: Path
) -> None:
    """The file counts once. A link to a directory, or to a file elsewhere, does not count."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    agent = transcript.agent("a")
    agent.response("m2", tokens=(20, 0, 0, 0))
    kept = claude_dir / "kept" / "b"
    outside = tmp_path / "outside"
    for place, message, size in ((kept, "m3", 300), (outside / "agent-c.jsonl", "m4", 4000)):
        place.parent.mkdir()
        place.write_bytes(encoded(without_name(message, size)))
    for number in range(20):
        (transcript.subagents / f"agent-{number}.jsonl").symlink_to(agent.path)
    (transcript.subagents / "agent-b.jsonl").symlink_to(kept)
    (transcript.subagents / "agent-c.jsonl").symlink_to(outside / "agent-c.jsonl")
    (transcript.subagents / "agent-d.jsonl").symlink_to("agent-d.jsonl")
    (transcript.subagents / "agent-e.jsonl").symlink_to("nothing")
    (transcript.subagents / "dir").symlink_to(outside)
    (transcript.subagents / "loop").symlink_to(transcript.subagents)
    (claude_dir / "projects" / "linked").symlink_to(transcript.path.parent)
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


def test_claude_directory_may_be_a_link(claude_dir: Path, transcript: Transcript, tmp_path: Path) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    link = tmp_path / "link"
    link.symlink_to(claude_dir)
    reader = Reader(link)
    reader.source.name(SESSION, str(link / "projects" / transcript.path.parent.name / transcript.path.name))
    reader.source.name(SESSION, str(transcript.path))
    reader.read()
    assert (reader.total, len(reader.files)) == (1, 1)


@pytest.mark.parametrize(("place", "total"), [("projects", 0), ("session", 1), ("subagents", 1)])
def test_links_to_directories_are_reported(
    claude_dir: Path, transcript: Transcript, reader: Reader, tmp_path: Path, place: str, total: int
) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    transcript.agent("a").response("m2", tokens=(20, 0, 0, 0))
    path = {
        "projects": claude_dir / "projects",
        "session": transcript.subagents.parent,
        "subagents": transcript.subagents,
    }[place]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    reading = reader.read()
    assert reader.total == total
    assert reading.status.notes == (f"{path}: a symbolic link to a directory, which is not followed",)


def test_broken_link_is_reported_until_it_is_removed(transcript: Transcript, reader: Reader) -> None:
    transcript.agent("a").response("m1", tokens=(1, 0, 0, 0))
    transcript.path.symlink_to(transcript.path.name)
    reader.settle()
    assert "broken symbolic link" in " ".join(reader.read().status.notes)
    transcript.path.unlink()
    assert reader.source.changed(SESSION)
    assert reader.read().status.notes == ()


def test_restored_files_outside_the_claude_directory_are_not_read(
    claude_dir: Path, transcript: Transcript, reader: Reader, tmp_path: Path
) -> None:
    """What was read below another Claude directory still counts."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    moved = Reader(tmp_path / "other")
    moved.source.restore(SESSION, reader.files)
    transcript.response("m2", tokens=(20, 0, 0, 0))
    reading = moved.read()
    assert (reading.copies, reading.files, reading.status.state) == ((), reader.files, "absent")
    Transcript(moved.claude_dir, SESSION).response("m3", tokens=(300, 0, 0, 0))
    moved.settle()
    assert (moved.total, [file.number for file in moved.files]) == (300, [1, 2])


def test_directories_nested_too_deep_are_reported(transcript: Transcript, reader: Reader) -> None:
    transcript.agent("in", *"abcdefghijklmnop").response("m1", tokens=(1, 0, 0, 0))
    transcript.agent("out", *"abcdefghijklmnopq").response("m2", tokens=(20, 0, 0, 0))
    reading = reader.read()
    assert reader.total == 1
    assert "nested too deeply" in " ".join(reading.status.notes)


def test_files_over_the_limit_are_reported(transcript: Transcript, reader: Reader) -> None:
    """The same files are read again after a restart; the others are counted."""
    transcript.response("m0", tokens=(1, 0, 0, 0))
    transcript.subagents.mkdir(parents=True)
    for number in range(10_005):
        (transcript.subagents / f"agent-{number}.jsonl").write_bytes(b"")
    reading = reader.read()
    assert len(reading.files) == 10_000
    assert "6 are left out" in " ".join(reading.status.notes)
    reader.restart()
    reader.read()
    assert {file.path for file in reader.files} == {file.path for file in reading.files}


def test_every_directory_where_files_may_grow_or_appear_is_watched(
    claude_dir: Path, transcript: Transcript, reader: Reader
) -> None:
    """Only existing directories are listed."""
    assert reader.source.directories(SESSION) == ()
    reader.read()
    assert reader.source.directories(SESSION) == ()
    other = claude_dir / "projects" / "other"
    other.mkdir(parents=True)
    reader.read()
    assert set(reader.source.directories(SESSION)) == {str(claude_dir / "projects"), str(other)}
    transcript.response()
    transcript.agent("a", "deep").response()
    reader.read()
    expected = {
        claude_dir / "projects",
        transcript.path.parent,
        transcript.subagents.parent,
        transcript.subagents,
        transcript.subagents / "deep",
    }
    assert set(reader.source.directories(SESSION)) == {str(path) for path in expected}
