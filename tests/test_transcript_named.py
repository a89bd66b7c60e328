"""The transcript path that a hook names."""

import os
from pathlib import Path

import pytest

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.sources.transcripts.places import MOST_LEARNED
from harness.privilege import needs_root
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript

NOBODY = 65534


def test_named_path_is_read_with_its_sub_agents(claude_dir: Path, reader: Reader) -> None:
    """A search would not find it. It is still read after a restart."""
    place = claude_dir / "elsewhere" / "of another name.jsonl"
    reader.source.name(SESSION, str(place))
    reader.settle()
    writer = Transcript(claude_dir, SESSION, path=place)
    writer.response("m1", tokens=(1, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    writer.agent("a").response("m2", tokens=(20, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-a": 20}
    reader.restart()
    writer.agent("b").response("m3", tokens=(300, 0, 0, 0))
    reader.read()
    assert reader.total == 321


def test_named_path_survives_restoring(claude_dir: Path, reader: Reader) -> None:
    place = claude_dir / "elsewhere" / "x.jsonl"
    reader.source.name(SESSION, str(place))
    reader.source.restore(SESSION, ())
    Transcript(claude_dir, SESSION, path=place).response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    assert reader.total == 1


def test_naming_a_known_path_changes_nothing(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    reader.source.name(SESSION, str(transcript.path))
    assert not reader.source.changed(SESSION)
    reader.source.name(SESSION, str(transcript.path.with_name("other.jsonl")))
    assert reader.source.changed(SESSION)


@pytest.mark.parametrize("place", ["other.jsonl", "sub/other.jsonl", "{claude}x/other.jsonl", "linked/other.jsonl"])
def test_named_path_may_be_anywhere(claude_dir: Path, reader: Reader, tmp_path: Path, place: str) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "linked").symlink_to("target")
    path = tmp_path / place.replace("{claude}", str(claude_dir))
    reader.source.name(SESSION, str(path))
    Transcript(claude_dir, SESSION, path=path).response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    assert reader.total == 1
    assert reader.source.learned == ()


def test_another_sessions_file_is_read_with_its_sub_agents(claude_dir: Path, reader: Reader) -> None:
    """After a resume, a hook may name a session and the file of another one. Both are followed."""
    other = Transcript(claude_dir, "other")
    other.response("m1", tokens=(1, 0, 0, 0))
    reader.source.name(SESSION, str(other.path))
    both = [reader, Reader(claude_dir, "other")]
    both[1].source = reader.source
    for number, each in enumerate((other.agent("a"), other, Transcript(claude_dir, SESSION).agent("b")), start=2):
        for one in both:
            one.settle()
        each.response(f"m{number}", tokens=(10 ** (number - 1), 0, 0, 0))
        assert reader.source.changed(SESSION)
    for one in both:
        one.settle()
    assert reader.agents == {"main-session": 101, "agent-a": 10, "agent-b": 1000}
    assert both[1].agents == {"main-session": 101, "agent-a": 10}
    other.path.rename(other.path.with_name("kept.jsonl"))
    moved = Transcript(claude_dir, "other", "-elsewhere")
    moved.response("m9", tokens=(20_000, 0, 0, 0))
    reader.restart()
    reader.read()
    assert reader.agents == {"main-session": 20_101, "agent-a": 10, "agent-b": 1000}


def test_claude_directory_is_learned_from_a_named_path(claude_dir: Path, reader: Reader, tmp_path: Path) -> None:
    """From then on, it is searched for all sessions, even by another process."""
    other = tmp_path / "other"
    other.mkdir()
    reader.settle()
    Transcript(other, SESSION).response("m1", tokens=(1, 0, 0, 0))
    assert not reader.source.changed(SESSION)
    reader.source.name("another session", str(other / "projects" / "-p" / "another session.jsonl"))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert (reader.total, reader.source.learned) == (1, (str(other),))
    successor = TranscriptSource([str(claude_dir)])
    successor.learn(reader.source.learned)
    assert len(successor.read(SESSION).copies) == 1


def test_known_or_missing_directory_is_not_learned(claude_dir: Path, transcript: Transcript, tmp_path: Path) -> None:
    """A second name of a known one, or a part of one, is not learned either."""
    transcript.response()
    (tmp_path / "link").symlink_to(claude_dir)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "projects").symlink_to(claude_dir / "projects")
    source = TranscriptSource([str(claude_dir)])
    for root in (claude_dir, tmp_path / "link", tmp_path / "shared", tmp_path / "missing", tmp_path / "x" / ".."):
        source.name(SESSION, f"{root}/projects/-p/x.jsonl")
    assert source.learned == ()


def test_missing_learned_directory_makes_room_for_another(tmp_path: Path) -> None:
    """Until then it is kept, because it may come back."""
    source = TranscriptSource([])
    roots = [tmp_path / str(number) for number in range(MOST_LEARNED + 1)]
    for root in roots:
        root.mkdir()
        source.name(SESSION, str(root / "projects" / "-p" / "x.jsonl"))
        if root is roots[0]:
            root.rmdir()
    assert source.learned == tuple(map(str, roots[1:]))


@needs_root("give a directory to another user")
def test_directory_of_another_user_is_not_learned(claude_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Transcript(other, SESSION).response()
    path = Transcript(other, SESSION).path
    os.chown(other, NOBODY, NOBODY)
    source = TranscriptSource([str(claude_dir)])
    source.name(SESSION, str(path))
    assert source.learned == ()
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(BadInputError, match=f"belongs to another user \\(uid {NOBODY}\\)"):
        source.name(SESSION, str(path))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("projects/x.jsonl", "is not a transcript"),
        ("{claude}/projects/x.json", "is not a transcript"),
        ("{claude}", "is not a transcript"),
        ("", "is not a transcript"),
        ("{claude}/a\0.jsonl", "is not a path"),
        ("{claude}/device.jsonl", "leads to /dev/zero, which is not a regular file"),
        ("{claude}/directory.jsonl", "is a directory"),
        ("{claude}/fifo.jsonl", "is not a regular file"),
        ("{claude}/loop.jsonl", "broken symbolic link"),
    ],
)
def test_path_is_refused(
    claude_dir: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    """Nothing changes, unless the caller has the session's readings report it."""
    (claude_dir / "directory.jsonl").mkdir(parents=True)
    (claude_dir / "device.jsonl").symlink_to("/dev/zero")
    (claude_dir / "loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo(claude_dir / "fifo.jsonl")
    monkeypatch.chdir(claude_dir)
    named = path.replace("{claude}", str(claude_dir))
    with pytest.raises(BadInputError, match=why):
        reader.source.name(SESSION, named)
    assert reader.read().losses.unfollowed == ()
    if "\0" not in path:
        reader.source.name(SESSION, named, even_if_refused=True)
        (said,) = reader.read().losses.unfollowed
        assert why in said
        assert reader.files == ()


def test_refused_path_is_followed_once_it_is_a_file(claude_dir: Path, reader: Reader) -> None:
    path = claude_dir / "elsewhere" / "x.jsonl"
    path.mkdir(parents=True)
    reader.source.name(SESSION, str(path), even_if_refused=True)
    reader.settle()
    path.rmdir()
    Transcript(claude_dir, SESSION, path=path).response("m1", tokens=(1, 0, 0, 0))
    assert reader.source.changed(SESSION)
    assert reader.read().losses.unfollowed == ()
    assert reader.total == 1
