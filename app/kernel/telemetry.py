"""Prometheus: the Manager's own numbers, summed over its processes."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

REQUESTS = Counter("manager_http_requests_total", "HTTP requests answered.", ["method", "path", "status"])
DURATION = Histogram("manager_http_request_duration_seconds", "Time to answer an HTTP request.", ["method", "path"])
DAEMON_REQUESTS = Counter("manager_daemon_requests_total", "Requests of Daemons.", ["method", "status"])
HELD_POLLS = Gauge("manager_held_polls", "Polls of Daemons held now.", multiprocess_mode="livesum")


def note_request(method: str, path: str, status: int, duration_s: float) -> None:
    """Paths are route patterns, so that nobody can make up new time series by asking for made-up addresses."""
    known = method if method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH") else "OTHER"
    REQUESTS.labels(known, path, str(status)).inc()
    DURATION.labels(known, path).observe(duration_s)


def gathered(directory: str | None) -> CollectorRegistry:
    """Everything counted so far; from the shared files when several processes serve."""
    registry = CollectorRegistry()
    if directory:
        MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    else:
        registry.register(REQUESTS)
        registry.register(DURATION)
        registry.register(DAEMON_REQUESTS)
        registry.register(HELD_POLLS)
    return registry
