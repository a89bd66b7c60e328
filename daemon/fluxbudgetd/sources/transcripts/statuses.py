"""The status of the source after a reading of a session's transcripts."""

from collections.abc import Iterable, Sequence

from fluxbudgetd.model import SourceState, SourceStatus, TranscriptFile
from fluxbudgetd.sources.transcripts.survey import Survey, projects_directory
from fluxbudgetd.wire.text import shown_path

NAME = "transcripts"

_HINTS: dict[SourceState, str] = {
    "absent": "Claude Code writes it with the session's first line; another place: --claude-dir or $CLAUDE_CONFIG_DIR",
    "unreadable": "check its permissions and type; the session's other files are still read",
}
# At most this many items are listed in a message.
_LISTED = 5


def status_of(root: str, session: str, survey: Survey, files: Iterable[TranscriptFile]) -> SourceStatus:
    """Return the status: unreadable if any file is, absent if there are no files."""
    state: SourceState = "ok"
    detail = ""
    if survey.faults:
        state, detail = "unreadable", "; ".join(_listed(survey.faults))
    elif not survey.files:
        state, detail = "absent", f"there is no transcript of session {session}"
    return SourceStatus(
        name=NAME,
        path=shown_path(projects_directory(root)),
        state=state,
        detail=detail,
        hint=_HINTS.get(state, ""),
        notes=(*_listed(tuple(survey.notes)), *_losses(files)),
    )


def _losses(files: Iterable[TranscriptFile]) -> list[str]:
    """Return notes about what could not be read in the files."""
    files = tuple(files)
    skipped = [f"{file.path}: {file.skipped} lines could not be read" for file in files if file.skipped]
    dropped = [f"{file.path}: {file.anomalies} invalid token counts ignored" for file in files if file.anomalies]
    return [*_listed(skipped), *_listed(dropped)]


def _listed(items: Sequence[str]) -> Sequence[str]:
    if len(items) <= _LISTED:
        return items
    return [*items[:_LISTED], f"and {len(items) - _LISTED} more of them"]
