"""Changes are noticed, whatever resolution a file system's times have."""

from pathlib import Path

import pytest

from fluxbudgetd.sources import stamps
from harness.mounts import run_on_whole_seconds, why_no_whole_seconds
from harness.privilege import needs_root

_SECOND = 1_000_000_000
#: A time on a whole second, in nanoseconds.
_WHOLE = 1_800_000_000 * _SECOND


@pytest.mark.parametrize(
    ("changed_at", "age", "is_settled"),
    [
        (_WHOLE + 1, 49_000_000, False),
        (_WHOLE + 1, -49_000_000, False),
        (_WHOLE + 1, 51_000_000, True),
        (_WHOLE + 500_000_000, _SECOND, True),
        (_WHOLE, 51_000_000, False),
        (_WHOLE, _SECOND, False),
        (_WHOLE, 2 * _SECOND, False),  # FAT keeps even seconds
        (_WHOLE, 2 * _SECOND + 51_000_000, True),
    ],
)
def test_recent_change_is_not_settled(changed_at: int, age: int, is_settled: bool) -> None:
    """Another change may get the same time."""
    stamp = (1, 2, 3, changed_at)
    assert stamps.settled(stamp, changed_at + age) == (stamp if is_settled else stamps.UNSETTLED)


@pytest.mark.parametrize("stamp", [stamps.MISSING, (13,)])
def test_what_is_missing_or_unreadable_is_settled(stamp: stamps.PathStamp) -> None:
    assert stamps.settled(stamp, 0) == stamp


def test_file_is_settled_at_once_unless_times_are_whole_seconds(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    while (info := path.stat()).st_ctime_ns % _SECOND == 0:
        path.touch()
    assert stamps.file_stamp(info) == stamps.stamp_of(info) == stamps.stamp(str(path))


_SCRIPT = """
import os, sys
from pathlib import Path
from fluxbudgetd.sources.transcripts import TranscriptSource
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript

root = Path(sys.argv[1])
assert root.stat().st_ctime_ns % 1_000_000_000 == 0, "the file system does not keep whole seconds"
reader, transcript = Reader(root), Transcript(root, SESSION)
for number in range(60):
    transcript.agent(f"{number}a").response(f"a{number}", tokens=(1, 0, 0, 0))
    reader.read()
    transcript.agent(f"{number}b").response(f"b{number}", tokens=(1, 0, 0, 0))
    if reader.source.changed(SESSION):
        reader.read()
    assert reader.total == 3 * number + 2, (number, reader.total)
    before = transcript.agent(f"{number}b").path
    raw = before.read_bytes()
    before.write_bytes(raw.replace(b'"req_', b'"REQ_'))
    assert reader.source.changed(SESSION), number
reader.settle()
assert reader.total == 180, reader.total
assert not reader.source.changed(SESSION)
"""


@needs_root("mount a file system", why_no_whole_seconds)
def test_file_system_with_whole_seconds(tmp_path: Path) -> None:
    """Several changes within one second: a new file, and one that is rewritten in place with the same size."""
    run_on_whole_seconds(tmp_path, _SCRIPT)
