"""Structured logs: one JSON object per line on standard error, with request and trace id."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace
from structlog.tracebacks import ExceptionDictTransformer

from naru import api_key
from naru.context import current_or_none

Logger = structlog.typing.FilteringBoundLogger


def configure(service: str, level: str = "info") -> None:
    """Sets the process's logging up; libraries' own log records go through the same renderer.

    Args:
        service: Name on each line.
        level: "debug", "info", "warning" or "error".
    """
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _add_service(service),
        _add_ids,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Without local variables: those hold prompts, keys and tokens.
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
        _mask_keys,
    ]
    structlog.configure(
        processors=[*processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Below this level its methods do nothing at all; a processor that filters is asked anew for every line.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per request is the access log's business; these would add one each.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    # These would add one for each request to an upstream, and at debug level what it says; aiosqlite every statement, with
    # what it writes, and hpack every header, tokens of services included.
    for library in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "aiosqlite", "hpack"):
        logging.getLogger(library).setLevel(logging.WARNING)


def get_logger(name: str) -> Logger:
    """A logger; name it after the module."""
    logger: Logger = structlog.get_logger(name)
    return logger


def _add_service(service: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return add


def _add_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = current_or_none()
    if context is not None:
        event.setdefault("request_id", context.request_id)
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event.setdefault("trace_id", f"{span.trace_id:032x}")
    return event


def _mask_keys(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The last line of defence: no API key is written out, wherever it came from."""
    for name, value in event.items():
        event[name] = _masked(value)
    return event


def _masked(value: Any) -> Any:
    match value:
        case str():
            return api_key.PATTERN.sub(r"sk-naru-\1-***", value) if "sk-naru-" in value else value
        case dict():
            return {_masked(name): _masked(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_masked(inner) for inner in value]
        case _:
            return value
