"""Prometheus metrics of a server, in a registry of its own.

Labels hold names that the administrator gave (bundles), never anything that a request brings.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from countersteer.core.request import Completion
from countersteer.serving.rollout import Decision

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters, gauges and histograms; every method is cheap and safe on any thread."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        by = ("bundle", "mode")
        self.requests = Counter(
            "countersteer_requests", "Requests by how they ended.", ("endpoint", *by, "status"), registry=r
        )
        self.refused = Counter(
            "countersteer_refused", "Requests refused before generation, by error code.", ("code",), registry=r
        )
        self.prompt_tokens = Counter("countersteer_prompt_tokens", "Tokens read.", by, registry=r)
        self.tokens = Counter("countersteer_generated_tokens", "Tokens generated.", by, registry=r)
        self.seen = Counter("countersteer_edit_tokens_seen", "Tokens in a span, per edited layer.", by, registry=r)
        self.changed = Counter(
            "countersteer_edit_tokens_changed", "Tokens changed, or in shadow that would be.", by, registry=r
        )
        self.acted = Counter(
            "countersteer_requests_acted", "Requests with a token changed, or in shadow that would be.", by, registry=r
        )
        self.no_op = Counter(
            "countersteer_no_op", "Answers withheld because the bundle changed nothing.", by, registry=r
        )
        self.seconds = Histogram(
            "countersteer_request_seconds", "Seconds from receiving to the end.", ("endpoint",), registry=r,
            buckets=_SECONDS,
        )  # fmt: skip
        self.first = Histogram(
            "countersteer_first_token_seconds", "Seconds to the first piece.", ("endpoint",), registry=r,
            buckets=_SECONDS,
        )  # fmt: skip
        self.in_flight = Gauge("countersteer_in_flight", "Requests being generated.", registry=r)
        self.policy = Gauge("countersteer_policy_number", "Number of the policy in force.", registry=r)
        self.reloads = Counter("countersteer_policy_changes", "Changes of policy.", ("kind", "status"), registry=r)
        self.audit_ok = Gauge("countersteer_audit_ok", "1 while the audit log can be written.", registry=r)

    def completed(self, decision: Decision, completion: Completion) -> None:
        """Count a finished completion."""
        by = (decision.bundle.name if decision.bundle else "none", decision.mode)
        self.prompt_tokens.labels(*by).inc(completion.prompt_tokens)
        self.tokens.labels(*by).inc(len(completion.tokens))
        for layer in completion.receipt.layers:
            self.seen.labels(*by).inc(layer.tokens_seen)
            self.changed.labels(*by).inc(layer.tokens_changed)
        if completion.receipt.acted:
            self.acted.labels(*by).inc()

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
