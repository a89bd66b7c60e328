"""Claude Code's own sums of a session's tokens, which it writes to the transcript (`cost-state` records).

They grow over the session's whole life, also when it is resumed, and include what no transcript shows.
"""

from typing import NamedTuple

import msgspec

from fluxbudgetd.sources.transcripts.records import ABSENT, plain, string
from fluxbudgetd.sources.values import token_counts
from fluxbudgetd.wire.messages import MAX_TOKENS

#: A line without this is no such record.
HINT = b'"cost-state"'


class Stated(NamedTuple):
    """A session's tokens in all: `billing` is input and output, `total` includes the cache's."""

    billing: int
    total: int


class _ModelSums(msgspec.Struct, gc=False, rename="camel"):
    input_tokens: msgspec.Raw = ABSENT
    output_tokens: msgspec.Raw = ABSENT
    cache_read_input_tokens: msgspec.Raw = ABSENT
    cache_creation_input_tokens: msgspec.Raw = ABSENT


class _CostState(msgspec.Struct, gc=False, rename="camel"):
    type: msgspec.Raw = ABSENT
    session_id: msgspec.Raw = ABSENT
    model_usage: dict[str, _ModelSums] | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_CostState).decode


def read(line: bytes, session: str) -> Stated | None:
    """Return what a record says of a session; None if it is another record, or not understood."""
    try:
        found = _decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    if string(found.type) != "cost-state" or string(found.session_id) not in ("", session) or not found.model_usage:
        return None
    billing = cached = 0
    for sums in found.model_usage.values():
        counts, _ = token_counts(map(plain, msgspec.structs.astuple(sums)))
        billing += sum(counts[:2])
        cached += sum(counts[2:])
    return Stated(min(billing, MAX_TOKENS), min(billing + cached, MAX_TOKENS))
