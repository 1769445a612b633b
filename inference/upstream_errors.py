"""What an upstream answers instead of a completion, as the errors Naru promises.

One table by HTTP status. What is about our key, our account or our configuration is never shown to a caller, who can do
nothing about it; what is about the caller's request is shown without anything that looks like a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from naru.errors import NaruError, Reason, unavailable

_LONGEST_TEXT = 500
_LONGEST_WAIT = 3600.0
_SECRETS = re.compile(r"(?i)\bbearer\s+\S+|\b(?:sk|pk|rk|org|proj)[-_][\w.*-]{6,}")
_CONTEXT = re.compile(r"(?i)maximum context length|context length exceeded|context_length_exceeded")

AWAY = "The model's upstream is not available right now."
BUSY = "The model's upstream is at capacity. Please try again later."
LATE = "The model's upstream did not answer in time."
BROKEN = "The model's upstream gave an answer that could not be read."
TOO_MUCH = "The model's upstream sent more than an answer can hold."
_REFUSED_US = "The model's upstream does not serve this installation right now."
_REFUSED = "The model's upstream refused the request."


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a status becomes; `shown` when the upstream's own words are for the caller."""

    reason: Reason
    message: str
    shown: bool = False
    ours: bool = False


_ABOUT_US = _Rule(Reason.SERVICE_UNAVAILABLE, _REFUSED_US, ours=True)
_ABOUT_REQUEST = _Rule(Reason.INVALID_ARGUMENT, _REFUSED, shown=True)
_RULES: dict[int, _Rule] = {
    400: _ABOUT_REQUEST,
    401: _ABOUT_US,
    402: _ABOUT_US,
    403: _ABOUT_US,
    # The path or the model's name: both are the operator's.
    404: _ABOUT_US,
    405: _ABOUT_US,
    413: _Rule(Reason.PAYLOAD_TOO_LARGE, "The request is larger than the model's upstream takes."),
    422: _ABOUT_REQUEST,
    429: _Rule(Reason.OVERLOADED, BUSY),
    529: _Rule(Reason.OVERLOADED, BUSY),
}
_AWAY = _Rule(Reason.SERVICE_UNAVAILABLE, AWAY)
_UNPAID = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An upstream's refusal: the error for the caller, and whether the operator has something to mend."""

    error: NaruError
    ours: bool


def from_status(status: int, body: object, headers: Mapping[str, str], api_key: str) -> Refusal:
    """The refusal that an HTTP answer is.

    Args:
        status: Its status.
        body: Its decoded body, or the `error` in it; anything at all.
        headers: Its headers, by lower-case name.
        api_key: Our key, which must not be shown.
    """
    detail = _detail(body)
    rule = _RULES.get(status, _AWAY)
    if status == 429 and str(detail.get("code") or detail.get("type")) in _UNPAID:
        rule = _ABOUT_US
    if rule.shown:
        return Refusal(_callers_fault(detail, api_key), ours=False)
    if rule.reason is Reason.PAYLOAD_TOO_LARGE:
        return Refusal(NaruError(rule.reason, rule.message), ours=False)
    wait = _retry_after(headers)
    error = NaruError(rule.reason, rule.message, metadata={"service": "inference"}, retry_after=wait)
    return Refusal(error, rule.ours)


def from_stream(body: object, api_key: str) -> Refusal:
    """The refusal that an `error` in the midst of an answer is; some name a status in it."""
    detail = _detail(body)
    code = detail.get("code")
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        return from_status(code, detail, {}, api_key)
    if detail.get("type") == "invalid_request_error" or code == "context_length_exceeded":
        return Refusal(_callers_fault(detail, api_key), ours=False)
    return Refusal(unavailable("inference", AWAY), ours=False)


def scrub(text: str, api_key: str) -> str:
    """A text of the upstream's without our key, anything that looks like one, and control characters; not too long."""
    if api_key:
        text = text.replace(api_key, "***")
    text = _SECRETS.sub("***", "".join(char if char.isprintable() else " " for char in text))
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def _callers_fault(detail: Mapping[str, Any], api_key: str) -> NaruError:
    said = detail.get("message")
    message = scrub(said, api_key) if isinstance(said, str) and said.strip() else _REFUSED
    param = detail.get("param")
    field = scrub(param, api_key) if isinstance(param, str) else ""
    if detail.get("code") == "context_length_exceeded" or _CONTEXT.search(message):
        return NaruError(Reason.CONTEXT_LENGTH_EXCEEDED, message, metadata={"field": field or "messages"})
    return NaruError(Reason.INVALID_ARGUMENT, message, metadata={"field": field})


def _detail(body: object) -> Mapping[str, Any]:
    if isinstance(body, dict):
        inner = body.get("error")
        return inner if isinstance(inner, dict) else body
    return {}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the upstream asks to wait; 1 when it does not say."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds > 0:
            return min(seconds, _LONGEST_WAIT)
    return 1.0
