"""The token counts of a response: those at the top level of its usage, and those below."""

import msgspec

from fluxbudgetd.model import ModelUsage
from fluxbudgetd.sources.transcripts.records import ABSENT, UsageFields, plain, string
from fluxbudgetd.sources.values import text, token_counts
from fluxbudgetd.wire.messages import MAX_TOKENS

# Claude Code's name for what does not come from a model, such as its own error messages.
_NO_MODEL = "<synthetic>"
# The iterations that are billed and that the top level does not include.
_BELOW = frozenset({"advisor_message", "compaction"})
# Those that it includes (`message`), or that are not billed (`fallback`: a declined request).
_NOT_BELOW = frozenset({"message", "fallback"})


class _CacheCreation(msgspec.Struct, gc=False):
    ephemeral_5m_input_tokens: msgspec.Raw = ABSENT
    ephemeral_1h_input_tokens: msgspec.Raw = ABSENT


class _Iteration(UsageFields, gc=False):
    type: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT


_decode_cache_creation = msgspec.json.Decoder(_CacheCreation).decode
_decode_iterations = msgspec.json.Decoder(list[_Iteration]).decode


def model_name(raw: msgspec.Raw) -> str:
    """Return a model's name; empty if there is no model."""
    name = string(raw)
    return "" if name == _NO_MODEL else text(name)


def top_level(usage: UsageFields, model: str) -> tuple[ModelUsage, int]:
    """Return the counts of a usage, and how many values were invalid."""
    named = (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens)
    (tokens_in, tokens_out, cache_read), invalid = token_counts(map(plain, named))
    cache_creation, cache_1h, invalid_too = _cache_creation(usage)
    return ModelUsage(model, tokens_in, tokens_out, cache_read, cache_creation, cache_1h), invalid + invalid_too


def below(usage: UsageFields, model: str) -> tuple[tuple[ModelUsage, ...], int]:
    """Return what the top level of a usage does not include, by model, and how many values were invalid.

    The counts of an iteration of an unknown type are not added, and are one invalid value.
    """
    try:
        iterations = _decode_iterations(usage.iterations)
    except msgspec.ValidationError:
        return (), 0
    found: dict[str, ModelUsage] = {}
    invalid = 0
    for iteration in iterations:
        kind = string(iteration.type)
        if kind in _NOT_BELOW:
            continue
        counts, wrong = top_level(iteration, model_name(iteration.model) or model)
        if kind in _BELOW:
            invalid += wrong
            found[counts.model] = _sum(found[counts.model], counts) if counts.model in found else counts
        else:
            invalid += _is_some(counts)
    return tuple(filter(_is_some, found.values())), invalid


def _cache_creation(usage: UsageFields) -> tuple[int, int, int]:
    """Return the cache-creation tokens, their part with a lifetime of one hour, and how many values were invalid.

    The total is the sum of its parts unless that is zero: some versions write the parts as zeros.
    """
    try:
        given = _decode_cache_creation(usage.cache_creation)
    except msgspec.ValidationError:
        given = _CacheCreation()
    parts, invalid = token_counts(map(plain, msgspec.structs.astuple(given)))
    if any(parts):
        # The sum may exceed `MAX_TOKENS` even if no part does.
        (total,), too_large = token_counts((sum(parts),))
        return total, min(parts[1], total), invalid + too_large
    (total,), invalid_total = token_counts((plain(usage.cache_creation_input_tokens),))
    return total, 0, invalid + invalid_total


def _is_some(counts: ModelUsage) -> bool:
    return bool(counts.input or counts.output or counts.cache_read or counts.cache_creation)


def _sum(one: ModelUsage, other: ModelUsage) -> ModelUsage:
    model, *mine = msgspec.structs.astuple(one)
    _, *others = msgspec.structs.astuple(other)
    return ModelUsage(model, *(min(a + b, MAX_TOKENS) for a, b in zip(mine, others, strict=True)))
