"""What was read from transcripts and is not in the ledger yet."""

from collections.abc import Iterable

from fluxbudgetd.ledger import TranscriptChanges, Wanted
from fluxbudgetd.model import Response, TranscriptFile
from fluxbudgetd.policy.responses import Merge


class Unsaved:
    """Changes that are newer than the ledger.

    `responses` are by key (None: it is gone). The response of each alias is among them, even if only the alias is new.
    `files` are by session and number, `by_message` has the keys of each message's responses.
    """

    def __init__(self) -> None:
        self.responses: dict[int, Response | None] = {}
        self.aliases: dict[int, int] = {}
        self.files: dict[tuple[str, int], TranscriptFile] = {}
        self.sharing: set[str] = set()
        self.by_message: dict[int, dict[int, None]] = {}

    def __bool__(self) -> bool:
        return bool(self.responses or self.files or self.sharing)

    def __len__(self) -> int:
        return len(self.responses) + len(self.files)

    @property
    def sessions(self) -> set[str]:
        """The sessions that have new positions."""
        return {session for session, _ in self.files}

    def add(self, session: str, merge: Merge) -> None:
        """Add what the copies of one session have changed."""
        self.responses.update(merge.responses)
        self.aliases.update(merge.aliases)
        for key, response in merge.responses.items():
            if response is not None:
                self.by_message.setdefault(response.message, {})[key] = None
        if merge.is_shared:
            self.sharing.add(session)

    def add_files(self, session: str, files: Iterable[TranscriptFile]) -> None:
        """Add new positions of a session's files."""
        self.files.update({(session, file.number): file for file in files})

    def followed_by(self, newer: "Unsaved") -> "Unsaved":
        """Return these changes and later ones together; neither is changed."""
        both = Unsaved()
        for each in (self, newer):
            both.responses.update(each.responses)
            both.aliases.update(each.aliases)
            both.files.update(each.files)
            both.sharing |= each.sharing
            for message, keys in each.by_message.items():
                both.by_message.setdefault(message, {}).update(keys)
        return both

    def update(self, responses: dict[int, Response], aliases: dict[int, int], wanted: Wanted) -> None:
        """Bring what the ledger knows up to date, and add what is wanted."""
        keys = {*responses, *wanted.identities}
        for message in (*wanted.messages, *wanted.replayed):
            keys.update(self.by_message.get(message, ()))
        for key in keys:
            identity = key
            while identity in self.aliases:
                responses.pop(identity, None)
                aliases[identity] = self.aliases[identity]
                identity = aliases[identity]
            response = self.responses.get(identity)
            if response is not None:
                responses[identity] = response

    def update_session(self, responses: dict[int, Response], session: str) -> None:
        """Bring all responses of a session, by key, up to date."""
        for key, response in self.responses.items():
            if response is None:
                responses.pop(key, None)
            elif response.session == session:
                responses[key] = response

    def changes(self) -> TranscriptChanges:
        """Return everything, as the ledger takes it."""
        return TranscriptChanges(
            gone=[key for key, response in self.responses.items() if response is None],
            new=[response for response in self.responses.values() if response is not None],
            aliases=list(self.aliases.items()),
            files=[(session, file) for (session, _), file in self.files.items()],
            sharing=self.sharing,
        )
