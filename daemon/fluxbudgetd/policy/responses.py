"""Which responses a session's transcripts hold, and which copy of each counts: pure functions, for any thread.

A response is written on several lines, and its lines are copied to other files and sessions. Each copy is resolved to a
response, in the order in which copies are read. The first rule that applies decides:

1. A copy whose identity is known, in any session, is a copy of that response. The response stays with its session.
2. A line that was copied from another session (`Copy.is_fork`) never makes a response, so it is ignored.
3. Compare the copy with the last response of the same message: the last one in the same file (for a quoted line: of the
   same agent, because the quotes of several agents are mixed), otherwise the last one in the session. They are the same
   response if they do not have two different request ids, and if the response is not final yet or both have the same
   prompt, that is, the same input and cache counts. So a request id on only some of a response's lines does not split
   it, and if a relay reuses one message id for all responses, all of them count.
4. Claude Code writes earlier responses again into sidechains, with other request ids. A copy of the same message and
   prompt, one in a sidechain and one not, is such a replay. The response may be another session's, after a fork.
5. Any other copy is a new response of the session that is read.

The identities of a response are those of its copies; the first of them is its key. If a line without a request id made
a response, and the next line of it shows that another session has the response, the first one was a copy, too.

The copy that counts is the best one: in the session's own conversation rather than in a sidechain, and that rather than
a quoted one; then a final one; then the one with the most output; then the one with the most tokens; then the first.
The response keeps the time of its first copy, so that it stays in its run and phase. Reading a copy again changes
nothing, and nothing is ever removed because a file has changed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from fluxbudgetd.model import OWN, QUOTED, SIDECHAIN, Copy, Response, Usage

# Keys are digests of 63 bits.
_KEYS = 1 << 63


class Known(NamedTuple):
    """What is known about copies before they are merged.

    `responses`, by key: those that have a copy's identity, the session's last ones of each copy's message and file,
    those of all sessions that a copy may replay (`may_be_replay`), and those of renamed files.
    `aliases`: identity → the key of its response, or another identity of it, unless the identity is a key.
    """

    responses: Mapping[int, Response]
    aliases: Mapping[int, int]

    def find(self, identity: int) -> Response | None:
        """Return the response that has an identity, or None."""
        key: int | None = identity
        while key is not None:
            if key in self.responses:
                return self.responses[key]
            key = self.aliases.get(key)
        return None


class Delta(NamedTuple):
    """How a session's responses change: those that no longer count as they were, and those that now count."""

    gone: tuple[Response, ...] = ()
    new: tuple[Response, ...] = ()


class Merge(NamedTuple):
    """What copies change.

    `responses` has, by key, the responses that have changed (None: it is gone) or have new aliases. `deltas` are the
    changes by session. `born` is the number of the next new response. `is_shared`: usage was found that counts for
    another session, if it counts at all.
    """

    responses: dict[int, Response | None]
    aliases: dict[int, int]
    deltas: dict[str, Delta]
    born: int
    is_shared: bool


def merge(
    session: str,
    copies: Iterable[Copy],
    known: Known,
    born: int,
    lost: Collection[int] = (),
    renamed: Mapping[int, tuple[str, str]] | None = None,
) -> Merge:
    """Return what copies from one session's files change, in the order in which they were read.

    `born` is the number of the next new response. `lost` has the numbers of the session's files that are gone, and
    `renamed` those whose agent has another name than before, with the old and the new name.
    """
    merging = _Merging(session, known, born, lost)
    merging.rename(renamed or {})
    for copy in copies:
        merging.add(copy)
    return merging.result()


def has_usage(response: Response | Copy) -> bool:
    """Return True if any tokens were used."""
    return _total(response) > 0


def may_be_replay(copy: Copy) -> bool:
    """Return True if a copy may replay a response of another session."""
    return copy.has_request and copy.place == SIDECHAIN


def records(response: Response) -> Iterator[Usage]:
    """Yield a response's usage: its top level, then each model's below it.

    It belongs to a run by its session and time alone.
    """
    top = (response.input, response.output, response.cache_read, response.cache_creation)
    yield Usage(response.key, response.at, response.agent, response.model, "", "", False, *top)
    for number, below in enumerate(response.below, 1):
        key = (response.key + number) % _KEYS
        counts = (below.input, below.output, below.cache_read, below.cache_creation)
        yield Usage(key, response.at, response.agent, below.model, "", "", False, *counts)


class _Merging:
    """The responses while copies are merged into them, one by one."""

    def __init__(self, session: str, known: Known, born: int, lost: Collection[int]) -> None:
        self._session = session
        self._before = known.responses
        self._responses = dict(known.responses)
        self._new_aliases: dict[int, int] = {}
        self._aliases = dict(known.aliases)
        self._now = Known(self._responses, self._aliases)
        self._born = born
        self._lost = lost
        self._touched: dict[int, None] = {}
        self._is_shared = False
        # Message → the keys of the session's responses, oldest first.
        self._of_message: dict[int, list[int]] = {}
        # The same of other sessions.
        self._elsewhere: dict[int, list[int]] = {}
        for response in sorted(known.responses.values(), key=_born):
            by_message = self._of_message if response.session == session else self._elsewhere
            by_message.setdefault(response.message, []).append(response.key)

    def rename(self, agents: Mapping[int, tuple[str, str]]) -> None:
        """Rename the agent in the responses of renamed files. Quoted ones have an agent of their own."""
        for response in self._before.values() if agents else ():
            old, new = agents.get(response.file, (None, ""))
            if response.session == self._session and response.agent == old:
                self._put(msgspec.structs.replace(response, agent=new))

    def add(self, copy: Copy) -> None:
        """Resolve a copy to its response, which takes the copy's counts if they are the best."""
        response = self._now.find(copy.identity)
        if response is not None:
            if copy.has_request:
                response = self._absorb_prelude(copy, response)
            self._improve(response, copy)
        elif copy.is_fork:
            self._is_shared = self._is_shared or has_usage(copy)
        else:
            response = self._match(copy)
            if response is None:
                self._create(copy)
            else:
                self._add_alias(copy.identity, response.key)
                self._improve(response, copy)

    def result(self) -> Merge:
        """Return what the copies have changed."""
        gone: dict[str, list[Response]] = {}
        new: dict[str, list[Response]] = {}
        changes: dict[int, Response | None] = {}
        for key in self._touched:
            before, after = self._before.get(key), self._responses.get(key)
            changes[key] = after
            if before == after:
                continue
            if before is not None:
                gone.setdefault(before.session, []).append(before)
            if after is not None:
                new.setdefault(after.session, []).append(after)
        sessions = dict.fromkeys((*gone, *new))
        deltas = {name: Delta(tuple(gone.get(name, ())), tuple(new.get(name, ()))) for name in sessions}
        return Merge(changes, self._new_aliases, deltas, self._born, self._is_shared)

    def _match(self, copy: Copy) -> Response | None:
        """Return the response that a copy with an unknown identity belongs to, or None if it is a new one."""
        keys = self._of_message.get(copy.message, [])
        if keys:
            response = self._last_beside(copy, keys) or self._responses[keys[-1]]
            if _continues(copy, response):
                return response
        if copy.has_request:
            others = self._elsewhere.get(copy.message, ()) if may_be_replay(copy) else ()
            for key in (*reversed(keys), *others):
                if _is_replay(copy, self._responses[key]):
                    return self._responses[key]
        return None

    def _last_beside(self, copy: Copy, keys: list[int]) -> Response | None:
        """Return the last of these responses that is where the copy is, or None."""
        for key in reversed(keys):
            response = self._responses[key]
            if copy.place == QUOTED:
                if response.agent == copy.agent:
                    return response
            elif response.file == copy.file and response.place != QUOTED:
                return response
        return None

    def _absorb_prelude(self, copy: Copy, response: Response) -> Response:
        """Merge the response made by the copy's earlier lines into this one of another session; return the result.

        Those lines have no request id, so they did not show which response they belong to.
        """
        if response.session == self._session:
            return response
        keys = self._of_message.get(copy.message, [])
        prelude = self._last_beside(copy, keys)
        if prelude is None or prelude.has_request or not _continues(copy, prelude):
            return response
        keys.remove(prelude.key)
        del self._responses[prelude.key]
        self._touched[prelude.key] = None
        self._add_alias(prelude.key, response.key)
        return self._improve(response, prelude)

    def _create(self, copy: Copy) -> None:
        key = copy.identity
        self._put(_response(key, self._session, copy.message, copy.has_request, self._born, copy.at, copy))
        self._of_message.setdefault(copy.message, []).append(key)
        self._born += 1

    def _improve(self, known: Response, copy: Copy | Response) -> Response:
        """Give a known response the copy's counts if they are better; return the response as it is now."""
        is_own = known.session == self._session
        if not is_own and not self._is_shared:
            self._is_shared = has_usage(copy)
        has_request = known.has_request or copy.has_request
        best, rank = _rank(known), _rank(copy)
        if rank > best:
            improved = _response(known.key, known.session, known.message, has_request, known.born, known.at, copy)
            if not is_own:  # a file's number means nothing in another session, and its agent belongs to the file
                improved = msgspec.structs.replace(improved, file=known.file, agent=known.agent)
        elif is_own and rank == best and known.file in self._lost:
            improved = msgspec.structs.replace(known, has_request=has_request, file=copy.file, agent=copy.agent)
        elif has_request != known.has_request:
            improved = msgspec.structs.replace(known, has_request=has_request)
        else:
            return known
        self._put(improved)
        return improved

    def _put(self, response: Response) -> None:
        self._responses[response.key] = response
        self._touched[response.key] = None

    def _add_alias(self, identity: int, key: int) -> None:
        self._aliases[identity] = self._new_aliases[identity] = key
        self._touched[key] = None


def _born(response: Response) -> int:
    return response.born


def _continues(copy: Copy, response: Response) -> bool:
    """Return True if a copy belongs to the last response of its message."""
    if copy.has_request and response.has_request:
        return False
    return not response.is_final or _has_same_prompt(copy, response)


def _is_replay(copy: Copy, response: Response) -> bool:
    return (
        response.has_request and {copy.place, response.place} == {OWN, SIDECHAIN} and _has_same_prompt(copy, response)
    )


def _has_same_prompt(copy: Copy, response: Response) -> bool:
    return (copy.input, copy.cache_read, copy.cache_creation) == (
        response.input,
        response.cache_read,
        response.cache_creation,
    )


def _rank(copy: Copy | Response) -> tuple[int, bool, int, int]:
    """Return the sort key of a copy, best last."""
    return -copy.place, copy.is_final, copy.output, _total(copy)


def _total(copy: Copy | Response) -> int:
    total = copy.input + copy.output + copy.cache_read + copy.cache_creation
    for below in copy.below:
        total += below.input + below.output + below.cache_read + below.cache_creation
    return total


def _response(
    key: int, session: str, message: int, has_request: bool, born: int, at: int | None, copy: Copy | Response
) -> Response:
    """Return a response with this copy's counts."""
    return Response(
        key,
        session,
        message,
        has_request,
        born,
        copy.place,
        copy.is_final,
        copy.file,
        at,
        copy.agent,
        copy.model,
        copy.input,
        copy.output,
        copy.cache_read,
        copy.cache_creation,
        copy.cache_1h,
        copy.is_fast,
        copy.below,
    )
