"""Where a session's transcripts are found."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluxbudgetd.sources.transcripts import TranscriptSource, survey
from fluxbudgetd.wire.text import fold
from harness.privilege import needs_root
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript, assistant_line, encoded

NOBODY = 65534


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
    source = TranscriptSource([str(claude_dir)])
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


def test_symbolic_links_to_files_are_followed(
    claude_dir: Path, transcript: Transcript, reader: Reader, tmp_path: Path
) -> None:
    """A file counts once, under its own name, wherever it is."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    agent = transcript.agent("a")
    agent.response("m2", tokens=(20, 0, 0, 0))
    kept, outside = claude_dir / "kept" / "b", tmp_path / "outside" / "agent-c.jsonl"
    for place, message, size in ((kept, "m3", 300), (outside, "m4", 4000)):
        place.parent.mkdir()
        place.write_bytes(encoded(without_name(message, size)))
    for number in range(20):
        (transcript.subagents / f"agent-{number}.jsonl").symlink_to(agent.path)
    (transcript.subagents / "agent-b.jsonl").symlink_to(kept)
    (transcript.subagents / "agent-c.jsonl").symlink_to(outside)
    (transcript.subagents / "loop").symlink_to(transcript.subagents)
    (claude_dir / "projects" / "linked").symlink_to(transcript.path.parent)
    reading = reader.read()
    assert reader.agents == {"main-session": 1, "agent-a": 20, "agent-b": 300, "agent-c": 4000}
    assert (len(reading.files), reading.losses.unfollowed, reading.status.notes) == (4, (), ())
    for place, message, size in ((kept, "m5", 50_000), (outside, "m6", 600_000)):
        with place.open("ab") as file:
            file.write(encoded(without_name(message, size)))
        assert reader.source.changed(SESSION)
        reader.settle()
    assert reader.total == 654_321


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


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("place", ["claude", "projects", "project", "session", "subagents", "deep"])
def test_symbolic_links_to_directories_are_followed(
    claude_dir: Path, transcript: Transcript, reader: Reader, tmp_path: Path, place: str, relative: bool
) -> None:
    """What was read before the directory was moved does not count again."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    agent = transcript.agent("a", "deep")
    agent.response("m2", tokens=(20, 0, 0, 0))
    reader.settle()
    path = {
        "claude": claude_dir,
        "projects": claude_dir / "projects",
        "project": transcript.path.parent,
        "session": transcript.subagents.parent,
        "subagents": transcript.subagents,
        "deep": agent.path.parent,
    }[place]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(os.path.relpath(elsewhere, path.parent) if relative else elsewhere)
    transcript.response("m3", tokens=(300, 0, 0, 0))
    agent.response("m4", tokens=(4000, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert (reader.total, reader.received) == (4321, 4)
    transcript.agent("b").response("m5", tokens=(50_000, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 54_321
    assert any(Path(watched).is_relative_to(elsewhere) for watched in reader.source.directories(SESSION))


@pytest.mark.parametrize("place", ["claude", "projects", "session", "subagents", "deep", "file"])
def test_retargeted_link_is_noticed(
    claude_dir: Path, transcript: Transcript, reader: Reader, tmp_path: Path, place: str
) -> None:
    """The link that changes is one of a chain, so no directory that was searched changes."""
    agent = transcript.agent("a", "deep")
    path = {
        "claude": claude_dir,
        "projects": claude_dir / "projects",
        "session": transcript.subagents.parent,
        "subagents": transcript.subagents,
        "deep": agent.path.parent,
        "file": agent.path,
    }[place]
    middle = tmp_path / "middle"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(middle)
    agents_in = agent.path.relative_to(path) if agent.path != path else Path()
    for number, name in enumerate(("one", "other"), start=1):
        target = tmp_path / name / agents_in
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(without_name(f"m{number}", 10**number)))
    middle.symlink_to(tmp_path / "one")
    reader.settle()
    assert reader.total == 10
    middle.unlink()
    middle.symlink_to(tmp_path / "other")
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 110


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("nothing")


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path.with_name("s")))
    path.symlink_to("s")


def _directory(path: Path) -> None:
    path.symlink_to("..")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_loop, ": broken symbolic link"),
        (_dangling, ": broken symbolic link"),
        (_device, ": leads to /dev/zero, which is not a regular file"),
        (_fifo, "/fifo, which is not a regular file"),
        (_socket, "/s, which is not a regular file"),
        (_directory, ", which is a directory"),
    ],
)
def test_link_to_anything_but_a_file_is_reported_until_it_is_removed(
    transcript: Transcript, reader: Reader, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], why: str
) -> None:
    transcript.agent("a").response("m1", tokens=(1, 0, 0, 0))
    monkeypatch.chdir(transcript.path.parent)  # a socket's path has at most 107 bytes
    for path in (Path(transcript.path.name), Path(SESSION, "subagents", "agent-b.jsonl")):
        make(path)
        if make is not _dangling:  # that is looked for again and again
            reader.settle()
        (said,) = reader.read().losses.unfollowed
        assert said.startswith(str(path.absolute()))
        assert why in said
        assert reader.total == 1
        path.unlink()
        assert reader.source.changed(SESSION)
        assert reader.read().losses.unfollowed == ()


@needs_root("give files to another user")
@pytest.mark.parametrize("place", ["projects", "project", "session", "subagents", "deep", "file"])
def test_link_to_what_belongs_to_another_user_is_not_followed(
    claude_dir: Path, transcript: Transcript, reader: Reader, tmp_path: Path, place: str
) -> None:
    """Root's files are followed."""
    agent = transcript.agent("a", "deep")
    path = {
        "projects": claude_dir / "projects",
        "project": transcript.path.parent,
        "session": transcript.subagents.parent,
        "subagents": transcript.subagents,
        "deep": agent.path.parent,
        "file": agent.path,
    }[place]
    agent.response("m1", tokens=(1, 0, 0, 0))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    os.chown(tmp_path / "elsewhere", NOBODY, NOBODY)
    (said,) = reader.read().losses.unfollowed
    assert said == f"{path}: leads to {tmp_path}/elsewhere, which belongs to another user (uid {NOBODY})"
    assert reader.total == 0
    expected = [f"not followed: {said}"] if place in ("projects", "project") else []
    assert [problem.what for problem in reader.source.problems()] == expected
    os.chown(tmp_path / "elsewhere", 0, 0)
    assert reader.source.changed(SESSION)
    assert reader.read().losses.unfollowed == ()
    assert (reader.total, reader.source.problems()) == (1, ())


def test_broken_link_of_another_project_is_a_problem_of_the_directory_only(
    claude_dir: Path, transcript: Transcript, reader: Reader
) -> None:
    transcript.path.parent.mkdir(parents=True)
    (claude_dir / "projects" / "-other").symlink_to("nothing")
    (claude_dir / "projects" / "file").symlink_to("/etc/passwd")
    assert reader.read().losses.unfollowed == ()
    (problem,) = reader.source.problems()
    assert problem.what == f"not followed: {claude_dir}/projects/-other: broken symbolic link"
    assert problem.hint


def test_restored_files_are_read_wherever_they_are(transcript: Transcript, reader: Reader, tmp_path: Path) -> None:
    """A session's files are still read after other Claude directories were configured."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    files = reader.files
    reader.source = TranscriptSource([str(tmp_path / "other")])
    reader.source.restore(SESSION, files)
    transcript.response("m2", tokens=(20, 0, 0, 0))
    Transcript(tmp_path / "other", SESSION).response("m3", tokens=(300, 0, 0, 0))
    reader.settle()
    assert (reader.total, reader.received) == (321, 3)


def test_several_claude_directories_are_searched(transcript: Transcript, reader: Reader, tmp_path: Path) -> None:
    """One that appears later is found. Two names of one directory are one."""
    other, link = tmp_path / "other", tmp_path / "link"
    reader.source = TranscriptSource([str(reader.claude_dir), str(link), str(other)])
    reader.settle()
    transcript.response("m1", tokens=(1, 0, 0, 0))
    link.symlink_to(reader.claude_dir)
    assert reader.source.changed(SESSION)
    reader.settle()
    Transcript(other, SESSION).response("m2", tokens=(20, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert (reader.total, reader.received, len(reader.files)) == (21, 2, 2)
    expected = {str(path) for root in (reader.claude_dir, other) for path in (root / "projects").glob("**/")}
    assert set(reader.source.directories(SESSION)) == expected


def test_configured_directories_may_change(transcript: Transcript, reader: Reader, tmp_path: Path) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    Transcript(tmp_path / "other", SESSION).response("m2", tokens=(20, 0, 0, 0))
    reader.settle()
    reader.source.configure([str(reader.claude_dir)], are_chosen=False)
    assert not reader.source.changed(SESSION)
    reader.source.configure([str(tmp_path / "other")], are_chosen=False)
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 21


def test_only_a_chosen_directory_must_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "good").mkdir()
    directories = [str(tmp_path / name) for name in ("missing", "good", "file")]
    assert TranscriptSource(directories).problems() == ()
    problems = TranscriptSource(directories, are_chosen=True).problems()
    assert [problem.what for problem in problems] == [
        f"Claude directory {tmp_path}/missing: No such file or directory",
        f"Claude directory {tmp_path}/file: is not a directory",
    ]


def test_directories_nested_too_deep_are_reported(transcript: Transcript, reader: Reader) -> None:
    transcript.agent("in", *"abcdefghijklmnop").response("m1", tokens=(1, 0, 0, 0))
    transcript.agent("out", *"abcdefghijklmnopq").response("m2", tokens=(20, 0, 0, 0))
    reading = reader.read()
    assert reader.total == 1
    assert "nested too deeply" in " ".join(reading.losses.unfollowed)


def test_twenty_thousand_sub_agents_are_counted(transcript: Transcript, reader: Reader) -> None:
    """The same files are read again after a restart."""
    transcript.subagents.mkdir(parents=True)
    line = encoded(assistant_line(SESSION, "NAME", tokens=(1, 0, 0, 0)))
    for number in range(20_000):
        name = b"m%d" % number
        (transcript.subagents / f"agent-{number}.jsonl").write_bytes(line.replace(b"NAME", name))
    reading = reader.read()
    assert (reader.total, len(reader.files), reading.losses.unfollowed) == (20_000, 20_000, ())
    reader.restart()
    reader.read()
    assert (reader.total, reader.received, len(reader.files)) == (20_000, 20_000, 20_000)


def test_files_over_the_limit_are_reported(
    transcript: Transcript, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered: so many files would take a minute."""
    monkeypatch.setattr(survey, "MAX_FILES", 100)
    transcript.response("m0", tokens=(1, 0, 0, 0))
    for number in range(105):
        transcript.agent(f"{number}").response(f"m1{number}", tokens=(1, 0, 0, 0))
    reading = reader.read()
    assert (reader.total, len(reading.files)) == (100, 100)
    assert reading.losses.unfollowed == (
        f"session {SESSION}: more than 100 files or 20000 directories: 6 are not read",
    )
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


@pytest.mark.parametrize("damage", [b"", b'{"half', b"\0\0\n", b'{"type":"summary"}\n'])
def test_sub_agents_next_to_the_session_are_its_own(transcript: Transcript, reader: Reader, damage: bytes) -> None:
    """Versions before 2.1.2 wrote them there. The lines say to which session they belong."""
    transcript.line(encoded(old_line(SESSION, "m1", 1, sidechain=False)))
    agents = [Transcript(Path(), name, path=transcript.path.with_name(f"agent-{name}.jsonl")) for name in "ab"]
    for number, (agent, session) in enumerate(zip(agents, (SESSION, "another session"), strict=True), start=2):
        agent.line(damage + (b"\n" if damage == b'{"half' else b""))
        reader.settle()
        agent.line(encoded(old_line(session, f"m{number}", 10 ** (number - 1))))
        if session == SESSION:
            assert reader.source.changed(SESSION)
        reader.settle()
    assert reader.agents == {"main-session": 1, "agent-a": 10}
    agents[0].line(encoded(old_line(SESSION, "m4", 1000)))
    assert reader.source.changed(SESSION)
    reader.restart()
    reader.read()
    assert reader.agents == {"main-session": 1, "agent-a": 1010}


def old_line(session: str, message: str, size: int, *, sidechain: bool = True) -> dict[str, Any]:
    return {**assistant_line(session, message, tokens=(size, 0, 0, 0), sidechain=sidechain), "version": "2.0.14"}


def test_inode_that_is_used_again_says_nothing_about_the_session(transcript: Transcript, reader: Reader) -> None:
    """File systems reuse the inode of a deleted file at once, for example for another session's sub-agent."""
    transcript.line(encoded(old_line(SESSION, "m1", 1, sidechain=False)))
    first, second = (
        Transcript(Path(), SESSION, path=transcript.path.with_name(f"agent-{name}.jsonl")) for name in "ab"
    )
    first.line(encoded(old_line("another session", "m2", 10)))
    reader.settle()
    assert reader.total == 1
    # The same inode under another name: a rename shows it on every file system.
    first.path.rename(second.path)
    second.path.write_bytes(encoded(old_line(SESSION, "m3", 100)))
    reader.settle()
    assert reader.total == 101


def test_sub_agent_whose_session_is_not_known_is_a_problem(transcript: Transcript, reader: Reader) -> None:
    transcript.line(encoded(old_line(SESSION, "m1", 1, sidechain=False)))
    path = transcript.path.with_name("agent-a.jsonl")
    path.write_bytes(b'{"type":"user"}\n')
    reader.settle()
    (problem,) = reader.source.problems()
    assert problem.what == f"not counted: {path}: its lines name no session"
    path.unlink()
    reader.settle()
    assert reader.source.problems() == ()
