"""The edge's metrics. Labels come from closed sets only; nothing is counted per token."""

from __future__ import annotations

from naru.metrics import Metrics


class EdgeMetrics:
    """Made once per process."""

    def __init__(self, metrics: Metrics) -> None:
        self.requests = metrics.counter("http_requests_total", "HTTP requests answered.", ("endpoint", "status"))
        self.seconds = metrics.histogram(
            "http_request_duration_seconds", "Time from a request to the end of its answer.", ("endpoint",)
        )
        self.first = metrics.histogram(
            "naru_edge_time_to_first_token_seconds", "Time from a request to its first token.", ("endpoint",)
        )
        self.in_flight = metrics.gauge("naru_edge_requests_in_flight", "HTTP requests being answered.")
        self.dropped = metrics.counter(
            "naru_edge_dropped_total", "Reports to accounting that were given up.", ("kind",)
        )
