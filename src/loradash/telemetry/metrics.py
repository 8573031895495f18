"""Numbers about requests and processes: for Prometheus, and in short for replies about health.

Labels come from closed sets. What a client sends as a request type would otherwise make a time
series of each of its typing mistakes.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict

from loradash.errors import LoradashError
from loradash.telemetry.masking import without_secrets

Outcome = Literal["ok", "invalid", "error"]
Counts = Callable[[], Mapping[str, int]]

UNKNOWN = "unknown"
END_STATUSES = ("completed", "failed", "cancelled")
ATTEMPT_ENDINGS = ("completed", "failed", "cancelled", "released", "lost")

_OUTCOMES = ("ok", "invalid", "error")
_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_MAX_ERROR = 300


class RequestFigures(BaseModel):
    """How requests of one type went since the start; ``last_error`` is '' if none went wrong."""

    model_config = ConfigDict(frozen=True)

    count: int = 0
    invalid: int = 0
    errors: int = 0
    total_s: float = 0.0
    avg_s: float = 0.0
    max_s: float = 0.0
    last_error: str = ""
    last_error_at: datetime | None = None


class Metrics:
    """The counters of one program, in a registry of their own. Thread-safe."""

    def __init__(self, request_types: Collection[str], kinds: Collection[str]) -> None:
        self._request_types = frozenset(request_types)
        self._kinds = tuple(kinds)
        self._codes = frozenset(_codes(LoradashError))
        self._figures: dict[str, RequestFigures] = {}
        self._lock = threading.Lock()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "loradash_requests_total",
            "Requests that were answered",
            ["type", "outcome"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "loradash_request_seconds",
            "Seconds that requests took",
            ["type"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._ended = Counter(
            "loradash_processes_ended_total",
            "Processes that ended; code is that of the error or empty",
            ["kind", "status", "code"],
            registry=registry,
        )
        self._attempts = Counter(
            "loradash_attempts_total",
            "Attempts that ended",
            ["kind", "ending"],
            registry=registry,
        )

    def observe_request(
        self, request_type: str, outcome: Outcome, seconds: float, error: str = ""
    ) -> None:
        """Count a request that was answered; ``error`` is the sentence if it went wrong."""
        request_type = _known(request_type, self._request_types)
        outcome_label = _known(outcome, _OUTCOMES)
        seconds = max(0.0, seconds)
        self._requests.labels(request_type, outcome_label).inc()
        self._request_seconds.labels(request_type).observe(seconds)
        with self._lock:
            figures = self._figures.get(request_type, RequestFigures())
            count, total_s = figures.count + 1, figures.total_s + seconds
            changes: dict[str, object] = {
                "count": count,
                "invalid": figures.invalid + (outcome == "invalid"),
                "errors": figures.errors + (outcome == "error"),
                "total_s": total_s,
                "avg_s": total_s / count,
                "max_s": max(figures.max_s, seconds),
            }
            if outcome != "ok":
                changes["last_error"] = without_secrets(error)[:_MAX_ERROR]
                changes["last_error_at"] = datetime.now(UTC)
            self._figures[request_type] = figures.model_copy(update=changes)

    def count_process_end(self, kind: str, status: str, code: str = "") -> None:
        """Count a process that ended; ``code`` is that of its error, if it has one."""
        code = _known(code, self._codes) if code else ""
        self._ended.labels(_known(kind, self._kinds), _known(status, END_STATUSES), code).inc()

    def count_attempt(self, kind: str, ending: str) -> None:
        """Count an attempt that ended."""
        self._attempts.labels(_known(kind, self._kinds), _known(ending, ATTEMPT_ENDINGS)).inc()

    def watch(self, queue_length: Counts, running: Counts) -> None:
        """Ask these for the number of waiting and running processes by kind, at each `render`.

        One that raises a `LoradashError` is left out of that reply. Call this once.
        """
        self._registry.register(
            _Gauge("queue_length", "Processes that wait", queue_length, self._kinds)
        )
        self._registry.register(_Gauge("running", "Processes that run", running, self._kinds))

    def snapshot(self) -> dict[str, RequestFigures]:
        """Return the figures of each request type that has been asked for, by its name."""
        with self._lock:
            return dict(sorted(self._figures.items()))

    def render(self) -> tuple[bytes, str]:
        """Return everything in Prometheus's text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Gauge(Collector):
    """Numbers that are asked for when they are wanted."""

    def __init__(self, name: str, description: str, counts: Counts, kinds: Collection[str]) -> None:
        self._kinds = kinds
        self._name = f"loradash_{name}"
        self._description = description
        self._counts = counts

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name the metric without asking for its values, as registering it would."""
        return [GaugeMetricFamily(self._name, self._description, labels=["kind"])]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the present numbers; no number where they can't be had."""
        (family,) = self.describe()
        try:
            counts = self._counts()
        except LoradashError:  # whoever reads the registry next reports it
            return []
        for kind in self._kinds:
            family.add_metric([kind], counts.get(kind, 0))
        return [family]


def _known(value: object, known: Collection[str]) -> str:
    return value if isinstance(value, str) and value in known else UNKNOWN


def _codes(kind: type[LoradashError]) -> Iterator[str]:
    yield kind.code
    for child in kind.__subclasses__():
        yield from _codes(child)
