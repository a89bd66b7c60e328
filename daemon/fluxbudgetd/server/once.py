"""Remember what has been said, so that it is said only once."""

from collections.abc import Hashable

_MOST = 10_000


class Once:
    """Remembers the latest keys, until the daemon stops."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, None] = {}

    def is_first(self, key: Hashable) -> bool:
        """Return True if this key has not been passed before."""
        if key in self._seen:
            return False
        if len(self._seen) >= _MOST:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = None
        return True
