"""The metrics, as Prometheus names and describes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .. import Reason, __version__
from .._backend import COPY, OS_SPLICE
from .._kernel.flow import MOVER_NAME
from ..proxies._numbers import BUCKETS, DIRECTIONS, Key, Totals, add
from ..proxies._observing import REFUSALS
from .collecting import Collected

_PREFIX = "freebsd_splice_"

#: All that can serve a connection.
_SERVED_BY = (("kernel", MOVER_NAME), ("userspace", OS_SPLICE), ("userspace", COPY))

#: The worker's label for all that are retired.
_RETIRED = "retired"

#: What each worker says of itself: the name here and there, and a description.
_OF_WORKERS = (
    ("descriptors", "open_descriptors", "Descriptors that the worker has open."),
    ("descriptor limit", "max_descriptors", "Descriptors that the worker may have open."),
)


class Families(Collector):
    """The metrics of one scrape."""

    def __init__(self, collected: Collected) -> None:
        self._collected = collected

    def collect(self) -> Iterator[Metric]:
        totals = self._collected.totals
        listens = sorted(listen for name, listen, *_ in totals if name == "accepted")
        yield InfoMetricFamily(
            f"{_PREFIX}build", "The version of freebsd-splice.", {"version": __version__}
        )
        yield from self._workers()
        yield _counter(
            totals,
            "connections_accepted_total",
            "Connections that were accepted.",
            "accepted",
            ["listen"],
            ((listen,) for listen in listens),
        )
        yield _counter(
            totals,
            "connections_refused_total",
            "Connections that were accepted and joined to no target, by the reason.",
            "refused",
            ["listen", "reason"],
            ((listen, reason) for listen in listens for reason in REFUSALS),
        )
        yield _counter(
            totals,
            "connections_ended_total",
            "Connections that were joined to a target and have ended, by the reason.",
            "ended",
            ["listen", "reason"],
            ((listen, reason.value) for listen in listens for reason in Reason),
        )
        yield _counter(
            totals,
            "relayed_bytes_total",
            "Bytes that targets (up) and clients (down) were sent, by what has moved them.",
            "bytes",
            ["listen", "direction", "backend", "mover"],
            (
                (listen, direction, *by)
                for listen in listens
                for direction in DIRECTIONS
                for by in _SERVED_BY
            ),
        )
        yield _histogram(
            totals,
            "dial_duration_seconds",
            "Seconds for connecting to a target, the look-up of its name included.",
            "dial",
            ["listen", "result"],
            ((listen, result) for listen in listens for result in ("connected", "failed")),
        )
        yield _histogram(
            totals,
            "handshake_duration_seconds",
            "Seconds from the accepting until the client has said what it wants, dials left out.",
            "handshake",
            ["listen"],
            ((listen,) for listen in listens),
        )

    def _workers(self) -> Iterator[Metric]:
        workers = self._collected.workers
        yield GaugeMetricFamily(f"{_PREFIX}workers", "Worker processes.", len(workers))
        answered = GaugeMetricFamily(
            f"{_PREFIX}worker_answered",
            "1 where the worker has answered this scrape, 0 where the numbers are older.",
            labels=["worker"],
        )
        for number, worker in sorted(workers.items()):
            answered.add_metric([str(number)], int(worker.answered))
        yield answered
        retired = self._collected.retired
        yield GaugeMetricFamily(
            f"{_PREFIX}retired_workers",
            "Processes that a reload has left with the connections they had.",
            len(retired),
        )
        live = GaugeMetricFamily(
            f"{_PREFIX}connections_live",
            "Connections that were accepted and have not ended.",
            labels=["worker", "listen"],
        )
        own = [(str(number), worker.now) for number, worker in sorted(workers.items())]
        left: Totals = {}
        for worker in retired:
            add(left, worker.now)
        for name, now in [*own, (_RETIRED, left)]:
            for (what, *labels), count in sorted(now.items()):
                if what == "live":
                    live.add_metric([name, *labels], count)
        yield live
        for key, name, text in _OF_WORKERS:
            family = GaugeMetricFamily(_PREFIX + name, text, labels=["worker"])
            for number, worker in sorted(workers.items()):
                if (key,) in worker.now:
                    family.add_metric([str(number)], worker.now[key,])
            yield family


def _counter(
    totals: Totals,
    name: str,
    text: str,
    counted: str,
    labels: list[str],
    values: Iterable[Key],
) -> Metric:
    """Return a counter with all values of its labels: what is 0 is shown too.

    A series that began with its first event would hide that event from ``rate``.
    """
    family = CounterMetricFamily(_PREFIX + name, text, labels=labels)
    for value in values:
        family.add_metric(value, totals.get((counted, *value), 0))
    return family


def _histogram(
    totals: Totals,
    name: str,
    text: str,
    observed: str,
    labels: list[str],
    values: Iterable[Key],
) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=labels)
    for value in values:
        buckets, count = [], 0.0
        for bucket in BUCKETS:
            count += totals.get((observed, *value, bucket), 0)
            buckets.append((bucket, count))
        family.add_metric(value, buckets, totals.get((f"{observed} seconds", *value), 0))
    return family
