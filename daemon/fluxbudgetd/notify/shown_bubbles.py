"""The notification that each key has on the server, so that a new bubble replaces the old one."""

from typing import NamedTuple

_MOST_KEYS = 1000


class NotificationServer(NamedTuple):
    """A notification server: the id of its bus, and its unique name there, which is never reused on that bus."""

    bus: str
    name: str


class ShownBubbles:
    """The notification of each key on the server that showed the last one."""

    def __init__(self) -> None:
        self._server: NotificationServer | None = None
        self._ids: dict[str, int] = {}

    def id_of(self, key: str, server: NotificationServer) -> int:
        """Return the key's notification on a server; 0 if it has none."""
        return self._ids.get(key, 0) if server == self._server else 0

    def remember(self, key: str, server: NotificationServer, number: int) -> None:
        """Remember a notification. Those on other servers are forgotten, and the oldest once there are too many."""
        if server != self._server:
            self._server = server
            self._ids.clear()
        self._ids.pop(key, None)
        self._ids[key] = number
        if len(self._ids) > _MOST_KEYS:
            del self._ids[next(iter(self._ids))]
