"""Transcripts that cannot be read."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.privilege import OBEDIENT
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its path may be longer than a socket's may
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "why"),
    [(os.mkdir, "is a directory"), (os.mkfifo, "is not a regular file"), (make_socket, "is not a regular file")],
)
def test_directory_fifo_or_socket_is_unreadable(
    transcript: Transcript, reader: Reader, make: Callable[[Path], None], why: str
) -> None:
    """Other files are read. A file that takes its place is read, too."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    bad = transcript.agent("bad")
    transcript.agent("good").response("m2", tokens=(20, 0, 0, 0))
    make(bad.path)
    for _ in range(2):
        reading = reader.read()
        assert (reading.status.state, reader.total) == ("unreadable", 21)
        assert reading.status.detail == f"{bad.path}: {why}"
        assert reading.status.hint
        assert len(reading.files) == 2
    reader.settle()
    bad.path.rename(bad.path.with_suffix(".away"))
    bad.response("m3", tokens=(300, 0, 0, 0))
    assert reader.source.changed(SESSION)
    assert reader.read().status.state == "ok"
    assert reader.total == 321


def test_main_file_that_becomes_a_directory_is_unreadable(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    transcript.path.unlink()
    transcript.path.mkdir()
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert (reading.status.state, reader.total, len(reading.files)) == ("unreadable", 1, 1)


def test_few_of_many_unreadable_files_are_listed(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1")
    for number in range(20):
        transcript.agent(f"{number:02}").path.mkdir(parents=True)
    status = reader.read().status
    assert status.detail.count("is a directory") == 5
    assert status.detail.endswith("and 15 more of them")


@pytest.mark.parametrize("place", ["", "projects"])
def test_file_in_place_of_a_directory(claude_dir: Path, reader: Reader, place: str) -> None:
    path = claude_dir / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert reader.read().status.state in ("absent", "unreadable")


PERMISSIONS = """
import json, os, sys
from fluxbudgetd.sources.transcripts import TranscriptSource
claude, session, *places = sys.argv[1:]
source = TranscriptSource([claude])
def read(what):
    changed = source.changed(session)
    reading = source.read(session)
    print(json.dumps([what, changed, sum(copy.input for copy in reading.copies), reading.status.state,
                      reading.status.detail, list(reading.losses.unfollowed), len(reading.files)]))
read("")
for place in places:
    mode = os.stat(place).st_mode
    os.chmod(place, 0)
    read(place)
    read(place)
    os.chmod(place, mode)
    read("")
"""


def test_file_without_permission_is_read_once_it_is_allowed(claude_dir: Path, transcript: Transcript) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    agent = transcript.agent("a", "deep")
    agent.response("m2", tokens=(20, 0, 0, 0))
    places = [agent.path, agent.path.parent, transcript.subagents, claude_dir / "projects"]
    result = subprocess.run(
        [*OBEDIENT, sys.executable, "-c", PERMISSIONS, claude_dir, SESSION, *places],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    first, *rest = [json.loads(line) for line in result.stdout.splitlines()]
    assert first == ["", True, 21, "ok", "", [], 2]
    for number, place in enumerate(places):
        denied, again, allowed = rest[3 * number : 3 * number + 3]
        assert denied[:4] == [str(place), True, 0, "unreadable"]
        assert f"{place}: Permission denied" in denied[4] or f"{agent.path}: Permission denied" in denied[4]
        assert again[2:] == denied[2:]
        assert any("Permission denied" in sentence for sentence in denied[5])
        assert allowed == ["", True, 0, "ok", "", [], 2]


CLOSED_PROJECT = """
import json, os, sys
from fluxbudgetd.sources.transcripts import TranscriptSource
claude, session, project = sys.argv[1:]
source = TranscriptSource([claude])
for mode in (0, 0o700):
    os.chmod(project, mode)
    print(json.dumps([source.changed(session), *source.read(session).losses.unfollowed]))
os.chmod(project, 0)
print(json.dumps([source.changed("another"), *source.read("another").losses.unfollowed]))
"""


def test_project_without_permission_may_have_the_sessions_files(claude_dir: Path, transcript: Transcript) -> None:
    """It is known to have none only if they were found elsewhere."""
    project = transcript.path.parent
    project.mkdir(parents=True)
    Transcript(claude_dir, "another", "-readable").response("m1")
    result = subprocess.run(
        [*OBEDIENT, sys.executable, "-c", CLOSED_PROJECT, claude_dir, SESSION, project],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    closed, opened, elsewhere = map(json.loads, result.stdout.splitlines())
    assert closed == [True, f"{project}: Permission denied"]
    assert opened == [True]
    assert elsewhere == [True]
