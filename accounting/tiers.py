"""What each tier allows. The built-in definitions can be replaced, tier by tier, with a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounting.quota import Limit, LimitKind, LimitWindow
from naru.identity import Principal
from naru.logs import Logger

DEFAULT_OUTPUT_TOKENS = 4096
"""Generated tokens per choice where a token limit applies and the caller set no cap."""
_FALLBACK = "free"
_CAPPED_KINDS = (LimitKind.OUTPUT_TOKENS, LimitKind.TOTAL_TOKENS)


@dataclass(frozen=True, slots=True)
class TierLimit:
    """One limit of a tier, before it is known whose it is."""

    kind: LimitKind
    window: LimitWindow
    limit: int


@dataclass(frozen=True, slots=True)
class Tier:
    """A named set of limits.

    Attributes:
        default_output_tokens: Taken, and sent to the engine as a cap, where a limit on generated tokens applies and the caller
            set none.
    """

    name: str
    limits: tuple[TierLimit, ...] = ()
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS

    @property
    def caps_output(self) -> bool:
        """Whether a limit on generated tokens applies."""
        return any(limit.kind in _CAPPED_KINDS for limit in self.limits)


def _requests(name: str, minute: int, hour: int, concurrency: int) -> Tier:
    return Tier(
        name,
        (
            TierLimit(LimitKind.REQUESTS, LimitWindow.MINUTE, minute),
            TierLimit(LimitKind.REQUESTS, LimitWindow.HOUR, hour),
            TierLimit(LimitKind.CONCURRENCY, LimitWindow.NONE, concurrency),
        ),
    )


BUILT_IN: Mapping[str, Tier] = {
    "free": _requests("free", 10, 100, 4),
    "standard": _requests("standard", 60, 1_000, 16),
    "unlimited": Tier("unlimited"),
}


class Tiers:
    """Finds the limits that apply to a principal. A tier that nobody defined is treated as `free` and logged once."""

    def __init__(self, tiers: Mapping[str, Tier], logger: Logger) -> None:
        self._tiers = dict(tiers)
        self._logger = logger
        self._unknown: set[str] = set()

    def of(self, principal: Principal) -> Tier:
        """The tier whose limits apply."""
        tier = self._tiers.get(principal.tier)
        if tier is not None:
            return tier
        # Names come from callers' records: a bound keeps a flood of wrong ones from filling the memory.
        if principal.tier not in self._unknown and len(self._unknown) < 1_000:
            self._unknown.add(principal.tier)
            self._logger.warning("unknown tier, using another", tier=principal.tier, used=_FALLBACK)
        return self._tiers[_FALLBACK]

    def limits(self, principal: Principal) -> tuple[Limit, ...]:
        """The limits of its tier, counted for the API key, else the user, else the workspace."""
        scope, scope_id = scope_of(principal)
        return tuple(Limit(scope, scope_id, one.kind, one.window, one.limit) for one in self.of(principal).limits)


def scope_of(principal: Principal) -> tuple[str, str]:
    """Whom a principal's requests count against: its key, else its user, else its workspace."""
    if principal.key_id:
        return "key", principal.key_id
    if principal.user_id:
        return "user", principal.user_id
    return "workspace", principal.workspace_id


def read(path: Path | None) -> dict[str, Tier]:
    """The built-in tiers, with those of the file in place of the ones it names. Raises ValueError when it is wrong.

    ```toml
    [free]
    default_output_tokens = 1024
    limits = [
      { kind = "requests", window = "minute", limit = 20 },
      { kind = "concurrency", limit = 2 },
    ]
    ```
    """
    tiers = dict(BUILT_IN)
    if path is None:
        return tiers
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the tiers of {path}: {error}") from error
    for name, table in document.items():
        try:
            tiers[name] = _tier(name, table)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: tier {name!r}: {error}") from error
    return tiers


def _tier(name: str, table: Any) -> Tier:
    if not isinstance(table, dict):
        raise TypeError("must be a table")
    _only(table, ("limits", "default_output_tokens"))
    limits = tuple(_limit(entry) for entry in table.get("limits", []))
    if len({(limit.kind, limit.window) for limit in limits}) != len(limits):
        raise ValueError("has two limits of one kind and window")
    return Tier(name, limits, _count(table.get("default_output_tokens", DEFAULT_OUTPUT_TOKENS), 1))


def _limit(entry: Any) -> TierLimit:
    if not isinstance(entry, dict):
        raise TypeError("a limit must be a table")
    _only(entry, ("kind", "window", "limit"))
    kind = LimitKind(entry.get("kind", ""))
    window = LimitWindow(entry.get("window", ""))
    if (kind is LimitKind.CONCURRENCY) != (window is LimitWindow.NONE):
        raise ValueError(f"{kind} needs {'no window' if kind is LimitKind.CONCURRENCY else 'a window'}")
    return TierLimit(kind, window, _count(entry.get("limit"), 0))


def _count(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 10**12:
        raise ValueError(f"{value!r} is not a whole number from {least} to 10^12")
    return value


def _only(table: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}")
