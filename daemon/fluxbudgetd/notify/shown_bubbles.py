"""The id of each key's notification on the server, so that a new bubble replaces the old one."""

from typing import NamedTuple

_MOST_KEYS = 1000


class NotificationServer(NamedTuple):
    """A notification server: the id of its bus, and its unique name there, which is never reused on that bus."""

    bus: str
    name: str


class ShownBubbles:
    """The notification ids of the server that showed the last bubble, by key."""

    def __init__(self) -> None:
        self._server: NotificationServer | None = None
        self._ids: dict[str, int] = {}

    def id_of(self, key: str, server: NotificationServer) -> int:
        """Return the id of the key's notification on a server; 0 if there is none."""
        return self._ids.get(key, 0) if server == self._server else 0

    def remember(self, key: str, server: NotificationServer, number: int) -> None:
        """Remember a notification's id. Ids of other servers are dropped, and the oldest once there are too many."""
        if server != self._server:
            self._server = server
            self._ids.clear()
        self._ids.pop(key, None)
        self._ids[key] = number
        if len(self._ids) > _MOST_KEYS:
            del self._ids[next(iter(self._ids))]
