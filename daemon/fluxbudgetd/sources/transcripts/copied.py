"""What a transcript of a forked session begins with: copies of another session's responses."""

import os

from fluxbudgetd.clock import now_micros
from fluxbudgetd.model import Copy
from fluxbudgetd.sources.transcripts.access import why_not_named
from fluxbudgetd.sources.transcripts.files import opened, unread_file
from fluxbudgetd.sources.transcripts.lines import Harvest

# Enough for the last few responses of the copied history.
_TAIL_BYTES = 512 << 10


def last_copies(path: str, session: str) -> list[Copy]:
    """Return the last copies of responses in a transcript, oldest first; none if it may not be read. Blocks."""
    if why_not_named(path) is not None:
        return []
    harvest = Harvest(unread_file(0, path, ""), session, now_micros)
    try:
        with opened(os.path.realpath(path)) as (fd, info):
            start = max(0, info.st_size - _TAIL_BYTES)
            lines = os.pread(fd, _TAIL_BYTES, start).splitlines()
    except (OSError, ValueError):
        return []
    for line in lines[1:] if start else lines:
        harvest.add(line)
    return harvest.copies
