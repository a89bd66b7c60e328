"""The transcript path that a hook names."""

from pathlib import Path

import pytest

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.sources.transcripts import TranscriptSource
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript, assistant_line, encoded


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


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd.jsonl", "leads outside"),
        ("{claude}/../x.jsonl", "leads outside"),
        ("{claude}/projects/../../outside/x.jsonl", "leads outside"),
        ("{claude}/link.jsonl", "leads outside"),
        ("{claude}/dir/x.jsonl", "leads outside"),
        ("{claude}x/y.jsonl", "leads outside"),
        ("projects/x.jsonl", "leads outside"),
        ("{claude}/projects/x.json", "is not a transcript"),
        ("{claude}", "is not a transcript"),
        ("", "is not a transcript"),
        ("{claude}/a\0.jsonl", "is not a path"),
    ],
)
def test_path_is_refused(
    claude_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    claude_dir.mkdir()
    (outside / "x.jsonl").write_bytes(encoded(assistant_line(SESSION)))
    (claude_dir / "link.jsonl").symlink_to(outside / "x.jsonl")
    (claude_dir / "dir").symlink_to(outside)
    monkeypatch.chdir(claude_dir)
    source = TranscriptSource(str(claude_dir))
    with pytest.raises(BadInputError, match=why):
        source.name(SESSION, path.replace("{claude}", str(claude_dir)))
    assert source.read(SESSION).files == ()
