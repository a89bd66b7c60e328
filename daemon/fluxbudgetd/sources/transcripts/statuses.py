"""What a reading of a session's transcripts says about the source."""

from collections.abc import Iterable, Sequence

from fluxbudgetd.model import SourceState, SourceStatus, TranscriptFile
from fluxbudgetd.sources.transcripts.survey import Survey, projects_directory
from fluxbudgetd.wire.text import shown_path

NAME = "transcripts"

_HINTS: dict[SourceState, str] = {
    "absent": "Claude Code writes it with the session's first line; another place: --claude-dir or $CLAUDE_CONFIG_DIR",
    "unreadable": "check the permissions, and what it is; the session's other files are read all the same",
}
# A list in a message ends after so many.
_LISTED = 5


def of(root: str, session: str, survey: Survey, files: Iterable[TranscriptFile]) -> SourceStatus:
    """Return the status: unreadable if any file is, absent if there is none."""
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
    """Return what was left out of the files that were read."""
    files = tuple(files)
    skipped = [f"{file.path}: {file.skipped} lines could not be read" for file in files if file.skipped]
    dropped = [f"{file.path}: {file.anomalies} counts are no counts" for file in files if file.anomalies]
    return [*_listed(skipped), *_listed(dropped)]


def _listed(items: Sequence[str]) -> Sequence[str]:
    if len(items) <= _LISTED:
        return items
    return [*items[:_LISTED], f"and {len(items) - _LISTED} more of the kind"]
