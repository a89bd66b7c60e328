"""Claude Code's own sums of a session's tokens, which it writes to the transcript (`cost-state` records).

They grow over the session's whole life, even if it is resumed, and include what no transcript shows.
"""

from typing import NamedTuple

import msgspec

from fluxbudgetd.sources.transcripts.records import ABSENT, Record, plain, string
from fluxbudgetd.sources.values import token_counts
from fluxbudgetd.wire.messages import MAX_TOKENS


class Stated(NamedTuple):
    """A session's tokens in all: `billing` is input and output, `total` includes the cache's."""

    billing: int
    total: int


class _ModelSums(msgspec.Struct, gc=False, rename="camel"):
    input_tokens: msgspec.Raw = ABSENT
    output_tokens: msgspec.Raw = ABSENT
    cache_read_input_tokens: msgspec.Raw = ABSENT
    cache_creation_input_tokens: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(dict[str, _ModelSums]).decode


def stated(record: Record, session: str) -> Stated | None:
    """Return what a record says of a session; None if it is another session's, or not understood."""
    try:
        sums = _decode(record.model_usage)
    except msgspec.DecodeError:
        return None
    if not sums or string(record.session_id) not in ("", session):
        return None
    billing = cached = 0
    for of_model in sums.values():
        counts, _ = token_counts(map(plain, msgspec.structs.astuple(of_model)))
        billing += sum(counts[:2])
        cached += sum(counts[2:])
    return Stated(min(billing, MAX_TOKENS), min(billing + cached, MAX_TOKENS))
