"""What the inference service counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial

from inference.engine import EngineCounters
from naru.metrics import Metrics

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class InferenceMetrics:
    """The service's own metrics; the kit has those of every RPC.

    Args:
        metrics: Makes them.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.engine_info = metrics.gauge(
            "naru_inference_engine_info", "Always 1; the label says which engine works.", ["engine"]
        )
        self._engine_counted = metrics.gauge(
            "naru_inference_engine_counted", "What the engine itself counted of requests that have ended.", ["figure"]
        )
        self.running = metrics.gauge("naru_inference_generations", "Generations between order and outcome.")
        self.waiting = metrics.gauge("naru_inference_waiting", "Requests that wait until the engine has a slot.")
        self.waited_seconds = metrics.histogram(
            "naru_inference_waited_seconds", "What requests waited for a slot that got one.", buckets=_SECONDS
        )
        self.overloaded = metrics.counter(
            "naru_inference_overloaded_total",
            "Requests refused because too many waited (length), or they for too long (time).",
            ["bound"],
        )
        self.refused = metrics.counter("naru_inference_refused_total", "Generations refused, by reason.", ["reason"])
        self.finished = metrics.counter(
            "naru_inference_finished_total", "Generations finished, by outcome.", ["outcome"]
        )
        self.prompt_tokens = metrics.counter("naru_inference_prompt_tokens_total", "Prompt tokens metered.")
        self.completion_tokens = metrics.counter("naru_inference_completion_tokens_total", "Generated tokens metered.")
        self.first_output_seconds = metrics.histogram(
            "naru_inference_first_output_seconds",
            "From the order to the first output.",
            buckets=_SECONDS,
        )
        self.duration_seconds = metrics.histogram(
            "naru_inference_duration_seconds", "From the order to the outcome.", buckets=_SECONDS
        )
        self.sessions = metrics.gauge("naru_inference_sessions", "Open sessions.")
        self.stalled_sessions = metrics.counter(
            "naru_inference_stalled_readers_total", "Callers cut off because they did not read."
        )
        self.journal_backlog = metrics.gauge(
            "naru_inference_journal_backlog", "Usage events that accounting has not taken yet."
        )
        self.journal_writable = metrics.gauge(
            "naru_inference_journal_writable", "1 while the journal can be written, else 0."
        )
        self.journal_lost_bytes = metrics.counter(
            "naru_inference_journal_lost_bytes_total", "Bytes of damaged journal that were skipped."
        )
        self.quarantined = metrics.counter(
            "naru_inference_quarantined_total", "Usage events that accounting refused for good."
        )
        self.leases_lost = metrics.counter("naru_inference_leases_lost_total", "Leases that accounting did not renew.")

    def watch_engine(self, counters: Callable[[], EngineCounters]) -> None:
        """Shows what the engine counts, as `counters` says it whenever metrics are read."""
        for figure in fields(EngineCounters):
            self._engine_counted.labels(figure.name).set_function(partial(_figure, counters, figure.name))


def _figure(counters: Callable[[], EngineCounters], name: str) -> float:
    return float(getattr(counters(), name))
