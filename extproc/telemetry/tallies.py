"""Counters and histograms that cost the event loop next to nothing, in prometheus-client's text.

Knows: prometheus-client's families, which write the page. Must not know: what is counted.
One thread counts and any may read. Nothing is locked, unlike prometheus-client's own instruments,
of which a settled call takes ten: 57,000 instructions, a tenth of all that a call costs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counter:
    """One series that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self.value += amount


class Histogram:
    """One series of observations; a bucket holds what is at most its bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is of what is above every bound
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        bounds, low, high = self.bounds, 0, len(self.bounds)
        while low < high:  # as `bisect_left`, whose call costs five times as much compiled
            middle = (low + high) // 2
            if bounds[middle] < value:
                low = middle + 1
            else:
                high = middle
        self.counts[low] += 1
        self.total += value


class Counters(Collector):
    """A counter for each combination of label values there was."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry
    ) -> None:
        """Register as `name`, which is shown with `_total`."""
        self.name, self._text, self.label_names = name, text, labels
        self._series: dict[tuple[str, ...], Counter] = {}
        registry.register(self)

    def labels(self, *values: str) -> Counter:
        """Return the series of these label values, in the order of the names."""
        found = self._series.get(values)
        if found is None:
            assert len(values) == len(self.label_names), values
            found = self._series[values] = Counter()
        return found

    def describe(self) -> Iterator[Metric]:
        """Name it without a look at the series."""
        yield CounterMetricFamily(self.name, self._text, labels=self.label_names)

    def collect(self) -> Iterator[Metric]:
        """Return what is counted."""
        family = CounterMetricFamily(self.name, self._text, labels=self.label_names)
        for values, one in list(self._series.items()):
            family.add_metric(values, one.value)
        yield family


class Histograms(Collector):
    """A histogram for each combination of label values there was."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        bounds: tuple[float, ...],
        registry: CollectorRegistry,
    ) -> None:
        """Register as `name`; `bounds` rise, and the last bucket needs none."""
        self.name, self._text, self.label_names = name, text, labels
        self._bounds = bounds
        self._shown = [*map(floatToGoString, bounds), "+Inf"]
        self._series: dict[tuple[str, ...], Histogram] = {}
        registry.register(self)
        if not labels:
            self.labels()  # on the page from the start

    def labels(self, *values: str) -> Histogram:
        """Return the series of these label values, in the order of the names."""
        found = self._series.get(values)
        if found is None:
            assert len(values) == len(self.label_names), values
            found = self._series[values] = Histogram(self._bounds)
        return found

    def describe(self) -> Iterator[Metric]:
        """Name it without a look at the series."""
        yield HistogramMetricFamily(self.name, self._text, labels=self.label_names)

    def collect(self) -> Iterator[Metric]:
        """Return what is counted; the loop may be an observation ahead in the total."""
        family = HistogramMetricFamily(self.name, self._text, labels=self.label_names)
        for values, one in list(self._series.items()):
            upto = accumulate(list(one.counts))
            family.add_metric(values, list(zip(self._shown, upto, strict=True)), one.total)
        yield family
