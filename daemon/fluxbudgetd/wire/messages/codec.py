"""Encode messages as MessagePack, and decode them."""

from typing import get_args

import msgspec

from fluxbudgetd.wire.messages.base import Envelope, ErrorAnswer
from fluxbudgetd.wire.messages.budget import Advance, AdvanceAnswer, Check, CheckAnswer, Remaining, RemainingAnswer
from fluxbudgetd.wire.messages.calibration import Calibrate, CalibrateAnswer
from fluxbudgetd.wire.messages.commands import Command, CommandAnswer, Stdin
from fluxbudgetd.wire.messages.events import EventAnswer, HeartbeatAnswer, LaggedAnswer, Subscribe, SubscribedAnswer
from fluxbudgetd.wire.messages.hooks import Hook, HookAnswer, StatusLine, StatusLineAnswer
from fluxbudgetd.wire.messages.reviews import (
    Estimates,
    EstimatesAnswer,
    Report,
    ReportAnswer,
    TriageAnswer,
    TriageRequest,
)
from fluxbudgetd.wire.messages.runs import (
    RunAllow,
    RunAnswer,
    RunAttach,
    RunCancel,
    RunDetach,
    RunFinish,
    RunList,
    RunListAnswer,
    RunSet,
    RunShow,
    RunShowAnswer,
    RunStart,
)
from fluxbudgetd.wire.messages.service import (
    Doctor,
    DoctorAnswer,
    Loosen,
    LoosenAnswer,
    Ping,
    PingAnswer,
    Status,
    StatusAnswer,
    Sync,
    SyncAnswer,
)
from fluxbudgetd.wire.messages.shell import Defaults, DefaultsAnswer, Tokens, TokensAnswer

AnyRequest = (
    Ping
    | Remaining
    | Check
    | Status
    | RunStart
    | RunList
    | RunShow
    | RunSet
    | RunAllow
    | RunAttach
    | RunDetach
    | RunFinish
    | RunCancel
    | Advance
    | Estimates
    | TriageRequest
    | Report
    | Calibrate
    | Subscribe
    | Hook
    | StatusLine
    | Sync
    | Doctor
    | Loosen
    | Tokens
    | Defaults
    | Command
    | Stdin
)

AnyAnswer = (
    PingAnswer
    | RemainingAnswer
    | CheckAnswer
    | StatusAnswer
    | RunAnswer
    | RunListAnswer
    | RunShowAnswer
    | AdvanceAnswer
    | EstimatesAnswer
    | TriageAnswer
    | ReportAnswer
    | CalibrateAnswer
    | SubscribedAnswer
    | EventAnswer
    | HeartbeatAnswer
    | LaggedAnswer
    | HookAnswer
    | StatusLineAnswer
    | SyncAnswer
    | DoctorAnswer
    | LoosenAnswer
    | TokensAnswer
    | DefaultsAnswer
    | CommandAnswer
)

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_answer_decoder: msgspec.msgpack.Decoder[AnyAnswer] = msgspec.msgpack.Decoder(AnyAnswer)
_error_decoder = msgspec.msgpack.Decoder(ErrorAnswer)

encode = _encoder.encode
OPERATIONS = frozenset(kind.__struct_config__.tag for kind in get_args(AnyRequest))


# msgspec raises `UnicodeDecodeError` for text that is not UTF-8, which is not a `DecodeError`.
_NOT_UTF8 = "a text is not UTF-8"


def decode_request(body: bytes) -> AnyRequest:
    """Return the request; raise `msgspec.DecodeError` if it is not one (`decode_envelope` may say why)."""
    try:
        return _request_decoder.decode(body)
    except UnicodeDecodeError as exc:
        raise msgspec.DecodeError(_NOT_UTF8) from exc


def decode_envelope(body: bytes) -> Envelope:
    """Return the version and operation of any version's request; raise `msgspec.DecodeError` if it has none."""
    try:
        return _envelope_decoder.decode(body)
    except UnicodeDecodeError as exc:
        raise msgspec.DecodeError(_NOT_UTF8) from exc


def decode_answer(body: bytes) -> AnyAnswer | ErrorAnswer:
    """Return the answer; raise `msgspec.DecodeError` if it is not one."""
    try:
        return _answer_decoder.decode(body)
    except UnicodeDecodeError as exc:
        raise msgspec.DecodeError(_NOT_UTF8) from exc
    except msgspec.ValidationError:
        return _error_decoder.decode(body)
