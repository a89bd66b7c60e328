"""The status of the source after a reading of a session's transcripts."""

from collections.abc import Iterable, Sequence

from fluxbudgetd.model import Losses, SourceState, SourceStatus, TranscriptFile
from fluxbudgetd.sources.transcripts.survey import Survey

NAME = "transcripts"

_HINTS: dict[SourceState, str] = {
    "absent": "Claude Code writes it with the session's first line; if it is in another directory, use --claude-dir or "
    "claude_dirs in config.toml",
    "unreadable": "check its permissions and type; the session's other files are still read",
}
# At most this many items are listed in a message.
_LISTED = 5


def status_of(shown: str, session: str, survey: Survey, files: Sequence[TranscriptFile]) -> SourceStatus:
    """Return the status: unreadable if any file is, absent if there are no files."""
    state: SourceState = "ok"
    detail = ""
    if survey.faults:
        state, detail = "unreadable", "; ".join(_listed(survey.faults))
    elif not survey.files:
        state, detail = "absent", f"there is no transcript of session {session}"
    return SourceStatus(
        name=NAME,
        path=shown,
        state=state,
        detail=detail,
        hint=_HINTS.get(state, ""),
        notes=(*_listed((*survey.unfollowed, *survey.notes)), *_listed(_unread(files)), *_listed(_invalid(files))),
    )


def losses_of(survey: Survey, files: Sequence[TranscriptFile]) -> Losses:
    """Return what is missing from the files."""
    return Losses(
        unread=tuple(_listed(_unread(files))),
        unfollowed=tuple(_listed((*survey.faults, *survey.unfollowed))),
        placeholders=tuple(_listed(_placeholders(files))),
    )


def _unread(files: Iterable[TranscriptFile]) -> list[str]:
    return [
        f"{file.path}: {file.skipped} {'line' if file.skipped == 1 else 'lines'} could not be read"
        for file in files
        if file.skipped
    ]


def _invalid(files: Iterable[TranscriptFile]) -> list[str]:
    return [f"{file.path}: {file.anomalies} invalid token counts ignored" for file in files if file.anomalies]


def _placeholders(files: Iterable[TranscriptFile]) -> list[str]:
    return [
        f"{file.path}: Claude Code {file.placeholders} did not record the output tokens"
        for file in files
        if file.placeholders
    ]


def _listed(items: Sequence[str]) -> Sequence[str]:
    if len(items) <= _LISTED:
        return items
    return [*items[:_LISTED], f"and {len(items) - _LISTED} more of them"]
