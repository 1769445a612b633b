"""Capacity: reserved here for callers who have no edge to do it, and kept by leases for everybody while they run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from typing import Protocol

from inference.engine import POOLING_KINDS, EngineRequest, InputKind
from inference.events import EngineReport, EventKey, GenerationOrder, UsageEvent
from inference.metrics import InferenceMetrics
from inference.openai_body import asked_max_tokens, choices_per_prompt, is_chat, prompts, read_body
from inference.pooling_body import read_pooling_body
from naru.errors import NaruError
from naru.logs import Logger
from naru.prompt_estimate import estimate_input_tokens, estimate_prompt_tokens

_RENEW_RETRY = 2.0
_RENEW_LIMIT = 4096
_RESTORE_LIMIT = 256
_RELEASE_TRIES = 3
_COMPLETION_DEFAULT = 16


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to run a request; `output_token_cap` is per choice, None for no cap."""

    output_token_cap: int | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """What a request is likely to use: prompt tokens leaning upwards, most output tokens (0: not known), and choices."""

    input_tokens: int
    output_tokens: int
    choices: int = 1


class Renewal(Enum):
    """What became of a lease: it goes on, it is closed, or accounting knows nothing of the reservation."""

    RENEWED = "renewed"
    CLOSED = "closed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request that the engine has had, or has been about to have, since `accept_time`, in seconds since the epoch."""

    order: GenerationOrder
    served_model: str
    prompt_tokens: int
    choices: int
    accept_time: float

    def need(self) -> Need:
        """What it holds of the limits: its prompt is known exactly, what it may generate is what it was granted."""
        return replace(estimate(self.order.request), input_tokens=self.prompt_tokens, choices=self.choices)


class Accounting(Protocol):
    """What inference asks of accounting. Each call raises NaruError when accounting cannot be asked."""

    async def reserve(self, order: GenerationOrder, need: Need, revision: int, served_model: str) -> Grant | NaruError:
        """Takes capacity, or says why not."""

    async def release(self, key: EventKey) -> None:
        """Gives back what a reservation holds, except its request count."""

    async def finish(self, keys: Sequence[EventKey]) -> None:
        """Says that requests have ended, so that their places in flight are free. At most 4,096."""

    async def renew(self, keys: Sequence[EventKey]) -> list[Renewal]:
        """Extends leases; says for each what became of it. At most 4,096."""

    async def restore(self, running: Sequence[RunningRequest]) -> list[Renewal]:
        """Says what running requests hold that accounting knows nothing of; they have leases then. At most 256."""

    async def record_usage(self, events: Sequence[UsageEvent], report: EngineReport | None) -> list[NaruError | None]:
        """Reports events; says for each why it was refused for good, or None when accounting has it. At most 1,024.

        `report` is of an engine whose requests are all among these events and those that accounting took before.
        """


class Reservations:
    """Reserves for callers who come without an edge.

    Args:
        accounting: Who decides.
        logger: Where a release that failed is told.
    """

    def __init__(self, accounting: Accounting, logger: Logger) -> None:
        self._accounting = accounting
        self._logger = logger

    async def reserve(self, order: GenerationOrder, need: Need, revision: int, served_model: str) -> Grant | NaruError:
        """Takes capacity, or says why not. Raises NaruError when accounting cannot be asked; it may have decided then."""
        return await self._accounting.reserve(order, need, revision, served_model)

    async def release(self, key: EventKey) -> None:
        """Gives capacity back. Never fails: what cannot be released is given back when its lease ends."""
        for attempt in range(_RELEASE_TRIES):
            try:
                await self._accounting.release(key)
            except NaruError as error:
                self._logger.warning("release failed", event_id=key.event_id, attempt=attempt, reason=error.reason)
                await asyncio.sleep(0.1 * 4**attempt)
            else:
                return


class Leases:
    """Renews the leases of everything that runs, and says at once what has ended.

    Args:
        accounting: Who keeps them.
        logger: Where trouble is told.
        metrics: Where lost leases are counted.
        interval: Seconds between renewals.
    """

    def __init__(
        self,
        accounting: Accounting,
        logger: Logger,
        metrics: InferenceMetrics,
        interval: float,
    ) -> None:
        self._accounting = accounting
        self._logger = logger
        self._metrics = metrics
        self._interval = interval
        self._running: dict[EventKey, RunningRequest] = {}
        self._ended: list[EventKey] = []
        self._any_ended = asyncio.Event()

    def add(self, running: RunningRequest) -> None:
        """A request runs from now on."""
        self._running[running.order.key] = running

    def remove(self, key: EventKey, *, told: bool) -> None:
        """A request is over. `told`: its edge says so to accounting, with what it asks next."""
        if self._running.pop(key, None) is not None and not told:
            self._ended.append(key)
            self._any_ended.set()

    def forget(self, key: EventKey) -> None:
        """A request never began; whoever reserved for it says so."""
        _ = self._running.pop(key, None)

    async def tell_ended(self) -> None:
        """Tells what has ended, as soon as it has: what ends while a call is on its way is in the next. Runs for ever."""
        while True:
            await self._any_ended.wait()
            batch, self._ended = self._ended[:_RENEW_LIMIT], self._ended[_RENEW_LIMIT:]
            if not self._ended:
                self._any_ended.clear()
            try:
                await self._accounting.finish(batch)
            except NaruError as error:
                # Only sooner than the report of what they used, which gives the places back too.
                self._logger.debug("cannot say what has ended", count=len(batch), reason=error.reason)

    async def keep(self) -> None:
        """Renews in batches. Runs for ever."""
        while True:
            await asyncio.sleep(self._interval)
            await self._renew_until_done()

    async def _renew_until_done(self) -> None:
        while True:
            if await self._renew_all():
                return
            await asyncio.sleep(min(_RENEW_RETRY, self._interval))

    async def _renew_all(self) -> bool:
        keys = iter(tuple(self._running))
        try:
            while batch := list(islice(keys, _RENEW_LIMIT)):
                renewals = await self._accounting.renew(batch)
                self._tell_closed(batch, renewals)
                await self._restore(
                    [key for key, renewal in zip(batch, renewals, strict=True) if renewal is Renewal.UNKNOWN]
                )
        except NaruError as error:
            self._logger.warning("leases could not be renewed", count=len(self._running), reason=error.reason)
            return False
        return True

    async def _restore(self, unknown: Sequence[EventKey]) -> None:
        """Says again what those hold that still run; what ended meanwhile is reported as ended."""
        for start in range(0, len(unknown), _RESTORE_LIMIT):
            part = [self._running[key] for key in unknown[start : start + _RESTORE_LIMIT] if key in self._running]
            if part:
                self._logger.warning("accounting lost reservations", count=len(part))
                self._tell_closed([one.order.key for one in part], await self._accounting.restore(part))

    def _tell_closed(self, keys: Sequence[EventKey], renewals: Sequence[Renewal]) -> None:
        lost = [
            key
            for key, renewal in zip(keys, renewals, strict=True)
            if renewal is Renewal.CLOSED and key in self._running
        ]
        if lost:
            self._metrics.leases_lost.inc(len(lost))
            self._logger.warning("leases not renewed", count=len(lost), event_ids=[key.event_id for key in lost[:10]])


def choices_of_each_prompt(request: EngineRequest) -> int:
    """How many choices are asked for each prompt. Raises NaruError when the request makes no sense."""
    return 1 if request.kind in POOLING_KINDS else choices_per_prompt(read_body(request))


def estimate(request: EngineRequest) -> Need:
    """What a request is likely to use, from its bytes and the limits it sets itself.

    Raises NaruError naming the field when the request makes no sense.
    """
    if request.kind in POOLING_KINDS:
        # No output at all would be understood as output of unknown length.
        return Need(estimate_input_tokens(read_pooling_body(request).inputs), output_tokens=1)
    body = read_body(request)
    asked = asked_max_tokens(body, is_chat(request))
    caps = [] if request.output_token_cap is None else [request.output_token_cap]
    if asked is not None:
        caps.append(asked[1])
    elif not is_chat(request):
        caps.append(_COMPLETION_DEFAULT)
    choices = prompts(body, is_chat(request)) * choices_per_prompt(body)
    return Need(_estimated_input(request), min(caps) * choices if caps else 0, choices)


def _estimated_input(request: EngineRequest) -> int:
    match request.kind:
        case InputKind.TOKEN_IDS:
            return len(request.token_ids)
        case InputKind.TEXT:
            return estimate_prompt_tokens(request.text.encode())
        case InputKind.CHAT:
            return sum(estimate_prompt_tokens(f"{role} {text}".encode()) for role, text in request.messages)
        case InputKind.OPENAI_CHAT | InputKind.OPENAI_COMPLETION:
            return estimate_prompt_tokens(request.openai_json)
        case _:
            raise ValueError(request.kind)
