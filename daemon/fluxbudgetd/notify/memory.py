"""Which notification each key has, so that a new bubble takes the old one's place."""

from typing import NamedTuple

_MOST_KEYS = 1000


class Server(NamedTuple):
    """A notification server: its bus's id, and its unique name there, which no other server of that bus ever gets."""

    bus: str
    name: str


class Memory:
    """The notification of each key on the server that was spoken to last."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._ids: dict[str, int] = {}

    def id_of(self, key: str, server: Server) -> int:
        """Return the key's notification on that server; 0 when it has none."""
        return self._ids.get(key, 0) if server == self._server else 0

    def keep(self, key: str, server: Server, number: int) -> None:
        """Remember a notification; those on other servers, and the oldest of too many, are forgotten."""
        if server != self._server:
            self._server = server
            self._ids.clear()
        self._ids.pop(key, None)
        self._ids[key] = number
        if len(self._ids) > _MOST_KEYS:
            del self._ids[next(iter(self._ids))]
