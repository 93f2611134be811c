"""Count what happened, for Prometheus.

Knows: instruments, outcomes, which label values may appear. Must not know: who scrapes, HTTP,
stores or the loop. Nothing is global: every Metrics has a registry of its own.

Label values are bounded. Models and providers are the configuration's names, everything else is
counted as `other`; so are tenants after the first thousand. Series are looked up once and kept, so
an admission costs one dictionary lookup and one observation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final, get_args

from prometheus_client import CollectorRegistry

from extproc.domain import PICO_USD_PER_USD, Ended, EndpointName, Outcome, UsageSource
from extproc.errors import KINDS
from extproc.telemetry.instruments import Instruments, page
from extproc.telemetry.tallies import Counter, Histogram

OTHER: Final = "other"
MAX_TENANTS: Final = 1_000  # the contract's bound
MAX_COST_SERIES: Final = 10_000  # tenants by models by providers; a page of 1.5 MB
MAX_NAMES: Final = 32  # phases, stores and operations: names in our own code, a dozen today

# gen_ai.operation.name: the well-known values of the semantic conventions. An OpenAI response is
# a chat there as well, a legacy completion is a text_completion.
OPERATIONS: Final[Mapping[str, str]] = {
    "chat": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
    "messages": "chat",
}
_NONE: Final = UsageSource.NONE  # here, because an enum's member takes a look-up each time
_ENDPOINTS: Final = frozenset(get_args(EndpointName))


class _Names:
    """The first so many distinct names; later ones are `other`."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def bound(self, name: str) -> str:
        if name in self._seen:
            return name
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(name)
        return name


class _Answers:
    """The series of answers of one operation by one provider, looked up once."""

    __slots__ = ("_duration", "_errors", "_names", "input", "output", "tpot", "ttft")

    def __init__(self, made: Instruments, names: tuple[str, str, str, str]) -> None:
        self.input = made.tokens.labels(*names, "input")
        self.output = made.tokens.labels(*names, "output")
        self.ttft = made.ttft.labels(*names)
        self.tpot = made.tpot.labels(*names)
        self._duration = made.duration
        self._names = names
        self._errors: dict[str, Histogram] = {}

    def duration(self, error_type: str) -> Histogram:
        found = self._errors.get(error_type)
        if found is None:
            found = self._errors[error_type] = self._duration.labels(*self._names, error_type)
        return found


class Metrics:
    """The observer that keeps counters and histograms.

    `store_error` and `expose` are for any thread, all else for the event loop's.
    """

    def __init__(
        self, *, models: Collection[str], served_models: Collection[str], providers: Collection[str]
    ) -> None:
        """Take the configuration's public models, models at providers, and providers."""
        self._models = frozenset(models)
        self._served_models = frozenset(served_models)
        self._providers = frozenset(providers)
        self._phases = _Names(MAX_NAMES)
        self._tenants = _Names(MAX_TENANTS)
        self._stores = _Names(MAX_NAMES)
        self._ops = _Names(MAX_NAMES)
        self._limits = _Names(MAX_NAMES)
        self._results = _Names(MAX_NAMES)
        self._fates = _Names(MAX_NAMES)
        self._store_lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._made = Instruments(self._registry)
        self._lag = self._made.loop_lag.labels()
        self._admission_of: dict[str, Histogram] = {}
        self._answers_of: dict[tuple[str, str, str, str], _Answers] = {}
        self._requests_of: dict[tuple[str, int, str], Counter] = {}
        self._cost_of: dict[tuple[str, str, str], Counter] = {}
        self._lookups_of: dict[str, Counter] = {}
        self._fills_of: dict[str, Counter] = {}
        self._attempts_of: dict[tuple[str, str], Counter] = {}
        self._source_of = {
            source: self._made.usage_source.labels(source.value)
            for source in UsageSource
            if source is not UsageSource.NONE
        }

    def admission(self, phase: str, seconds: float) -> None:
        """Count the duration of one phase of a decision."""
        found = self._admission_of.get(phase)
        if found is None:
            # Past the bound a name is bounded anew each time rather than kept.
            name = self._phases.bound(phase)
            found = self._made.admission.labels(name)
            if name == phase:
                self._admission_of[phase] = found
        found.observe(seconds)

    def denied(self, endpoint: str, status: int, code: str) -> None:
        """Count a refusal; `code` is a key of the error table."""
        self._request(endpoint, status, "denied").inc()
        known = endpoint if endpoint in _ENDPOINTS else OTHER
        self._made.denied.labels(known, code if code in KINDS else OTHER).inc()

    def settled(self, outcome: Outcome) -> None:
        """Count a settled call: tokens, times, cost, attempts.

        Of one that a kept answer was told to only that it was: no provider did anything.
        """
        ended, usage, endpoint = outcome.ended.value, outcome.usage, outcome.endpoint
        if outcome.cache:
            self._request(endpoint, outcome.status, ended).inc()
            return
        model, provider, served = outcome.model, outcome.provider, outcome.served_model
        model = model if model in self._models else OTHER
        provider = provider if provider in self._providers else OTHER
        served = served if served in self._served_models else OTHER
        names = (OPERATIONS.get(endpoint, OTHER), provider, model, served)
        answers = self._answers_of.get(names)
        if answers is None:
            answers = self._answers_of[names] = _Answers(self._made, names)
        self._request(endpoint, outcome.status, ended).inc()
        if outcome.attempts > 0:
            self._attempt(provider, ended).inc()
        for name in outcome.retried:
            self._attempt(name if name in self._providers else OTHER, "retried").inc()
        source = usage.source
        if source is not _NONE:
            self._source_of[source].inc()
            answers.input.observe(usage.input)
            if endpoint != "embeddings":
                answers.output.observe(usage.output)
        self._times(outcome, answers)
        cost = outcome.cost_pico_usd
        if cost:
            self._spent(outcome.tenant, model, provider, cost)

    def watch_breakers(self, state: Callable[[str], int]) -> None:
        """Show `state` of each provider at every scrape; it is called in the scraping thread."""
        for provider in self._providers:
            self._made.breaker.labels(provider).set_function(partial(state, provider))

    def store_error(self, store: str, op: str) -> None:
        """Count a failure of a store."""
        with self._store_lock:
            labels = self._stores.bound(store), self._ops.bound(op)
            self._made.store_errors.labels(*labels).inc()

    def limited(self, limit: str) -> None:
        """Count a call refused by a limit; its name is one of ours."""
        self._made.limited.labels(self._limits.bound(limit)).inc()

    def looked_up(self, result: str) -> None:
        """Count what a call found in the cache; the results are names of ours."""
        found = self._lookups_of.get(result)
        if found is None:
            found = self._lookups_of[result] = self._made.cache.labels(self._results.bound(result))
        found.inc()

    def kept(self, result: str) -> None:
        """Count whether an answer is kept, or why it is not."""
        found = self._fills_of.get(result)
        if found is None:
            found = self._made.cache_fills.labels(self._fates.bound(result))
            self._fills_of[result] = found
        found.inc()

    def loop_lag(self, seconds: float) -> None:
        """Count how late the event loop ran a timer."""
        self._lag.observe(seconds)

    def expose(self) -> tuple[bytes, str]:
        """Return the page to scrape and its content type; call it in a thread (see `page`)."""
        return page(self._registry)

    def _times(self, outcome: Outcome, answers: _Answers) -> None:
        finished = outcome.ended is Ended.FINISHED
        if finished:
            error = ""
        else:
            error = "cut" if outcome.ended is Ended.PARTIAL else _status(outcome.status)
        answers.duration(error).observe(outcome.duration_ms / 1000)
        if outcome.stream and outcome.ttft_ms is not None:
            answers.ttft.observe(outcome.ttft_ms / 1000)
            after_first = outcome.usage.output - 1
            if finished and after_first > 0:
                spent_ms = max(outcome.duration_ms - outcome.ttft_ms, 0)
                answers.tpot.observe(spent_ms / 1000 / after_first)

    def _request(self, endpoint: str, status: int, outcome: str) -> Counter:
        key = (endpoint, status, outcome)
        found = self._requests_of.get(key)
        if found is None:
            known = endpoint if endpoint in _ENDPOINTS else OTHER
            found = self._made.requests.labels(known, _status(status), outcome)
            if known == endpoint and _status(status) != OTHER:
                self._requests_of[key] = found
        return found

    def _attempt(self, provider: str, result: str) -> Counter:
        key = (provider, result)
        found = self._attempts_of.get(key)
        if found is None:
            found = self._attempts_of[key] = self._made.attempts.labels(*key)
        return found

    def _spent(self, tenant: str, model: str, provider: str, pico_usd: int) -> None:
        key = (self._tenants.bound(tenant), model, provider)
        found = self._cost_of.get(key)
        if found is None:
            if len(self._cost_of) >= MAX_COST_SERIES:
                key = (OTHER, model, provider)
            found = self._cost_of[key] = self._made.cost.labels(*key)
        found.inc(pico_usd / PICO_USD_PER_USD)


def _status(status: int) -> str:
    return str(status) if 100 <= status <= 599 else OTHER  # noqa: PLR2004 (RFC 9110, 15)
