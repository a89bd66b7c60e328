"""The transcript path that a hook names."""

from pathlib import Path

import pytest

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.sources.transcripts import TranscriptSource
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript, assistant_line, encoded


def test_named(claude: Path, reader: Reader) -> None:
    """A main file that nothing else would find, and its sub-agents; known again after a restart."""
    place = claude / "elsewhere" / "of another name.jsonl"
    reader.source.name(SESSION, str(place))
    reader.settle()
    writer = Transcript(claude, SESSION, path=place)
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


def test_named_and_then_restored(claude: Path, reader: Reader) -> None:
    place = claude / "elsewhere" / "x.jsonl"
    reader.source.name(SESSION, str(place))
    reader.source.restore(SESSION, ())
    Transcript(claude, SESSION, path=place).response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    assert reader.total == 1


def test_naming_what_is_known_changes_nothing(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    reader.source.name(SESSION, str(main.path))
    assert not reader.source.changed(SESSION)
    reader.source.name(SESSION, str(main.path.with_name("other.jsonl")))
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
def test_paths_that_are_refused(
    claude: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    claude.mkdir()
    (outside / "x.jsonl").write_bytes(encoded(assistant_line(SESSION)))
    (claude / "link.jsonl").symlink_to(outside / "x.jsonl")
    (claude / "dir").symlink_to(outside)
    monkeypatch.chdir(claude)
    source = TranscriptSource(str(claude))
    with pytest.raises(BadInputError, match=why):
        source.name(SESSION, path.replace("{claude}", str(claude)))
    assert source.read(SESSION).files == ()
