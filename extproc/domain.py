"""The nouns of the gateway as frozen values.

Knows: what a call, a caller, a plan, a usage and an outcome are. Must not know: protobuf, HTTP
libraries, files, clocks or the event loop.
What is made for every call is a msgspec Struct: a frozen dataclass takes five times as long to
build, which was 10 us of a call. `gc=False`, because none of them can be part of a cycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias, final

import msgspec

from extproc.answers import Complete, Filling, Told
from extproc.hold import Hold

PICO_USD_PER_USD = 10**12  # prices of 1e-6 USD per million tokens stay whole numbers

Dialect: TypeAlias = Literal["openai", "anthropic"]
DIALECTS: tuple[Dialect, ...] = ("openai", "anthropic")
EndpointName: TypeAlias = Literal[
    "chat", "completions", "embeddings", "responses", "messages", "count_tokens", "models"
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One public route: what it is called, whose error shape it answers in, and its upstream path.

    `suffix` is what follows the provider's base path (`/v1`), for example `/chat/completions`.
    `upstreams` are the dialects of the providers that can answer it, by translation if need be.
    """

    name: EndpointName
    dialect: Dialect
    suffix: str
    timeout_kind: Literal["embedding", "completion"] = "completion"
    upstreams: tuple[Dialect, ...] = ("openai",)


ENDPOINTS: Mapping[tuple[str, str], Endpoint] = {
    ("POST", "/v1/chat/completions"): Endpoint(
        "chat", "openai", "/chat/completions", upstreams=DIALECTS
    ),
    ("POST", "/v1/completions"): Endpoint("completions", "openai", "/completions"),
    ("POST", "/v1/embeddings"): Endpoint("embeddings", "openai", "/embeddings", "embedding"),
    ("POST", "/v1/responses"): Endpoint("responses", "openai", "/responses"),
    ("POST", "/v1/messages"): Endpoint("messages", "anthropic", "/messages", upstreams=DIALECTS),
    ("POST", "/v1/messages/count_tokens"): Endpoint(
        "count_tokens", "anthropic", "/messages/count_tokens", upstreams=("anthropic",)
    ),
}
MODELS_PATH = "/v1/models"  # GET, answered by the processor itself


class Head(msgspec.Struct, frozen=True, gc=False):
    """The request line and headers of one call; names lower-case, repeats joined by ", "."""

    method: str
    path: str  # without the query string
    query: str
    headers: Mapping[str, str]
    ends: bool  # no body follows


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as stored: everything but the key. Times are unix seconds.

    `last_used_at` is late by as much as a batch waits to be written, and as old as the record.
    """

    key_id: str  # public, `key_...`
    digest: bytes
    name: str
    tenant: str
    tier: str
    models: frozenset[str] | None  # None: every model
    endpoints: frozenset[str] | None  # None: every endpoint
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    tags: frozenset[str] = frozenset()
    last_used_at: float | None = None


class Principal(msgspec.Struct, frozen=True, gc=False):
    """Who is calling, as the server established it."""

    tenant: str
    key_id: str
    tier: str
    models: frozenset[str] | None = None
    endpoints: frozenset[str] | None = None

    def may_use_model(self, model: str) -> bool:
        """Say whether the allow-list holds the model."""
        return self.models is None or model in self.models

    def may_use_endpoint(self, endpoint: str) -> bool:
        """Say whether the allow-list holds the endpoint."""
        return self.endpoints is None or endpoint in self.endpoints


@dataclass(frozen=True, slots=True)
class Trace:
    """The span of one call: its trace, itself, and the caller's span, 0 where there is none."""

    trace_id: int  # 128 bits, never 0
    span_id: int  # 64 bits, never 0
    parent_id: int
    sampled: bool


class Span(msgspec.Struct, frozen=True, gc=False):
    """Half-open byte range of a JSON value in a request body."""

    start: int
    stop: int


NOTHING_SPECIAL: frozenset[str] = frozenset()


class Call(msgspec.Struct, frozen=True, gc=False):
    """A validated request body, read but not re-serialised.

    `model_span` covers the JSON string of the top-level `model`, quotes included.
    `stream_options_span` covers the JSON value of `stream_options`, None where absent.
    `object_start` is the offset just after the opening brace: where a new member may be put.
    `max_output_tokens` is the caller's bound per choice, None where absent.
    `limit_spans` cover the JSON values of every bound of output there is in the body.
    `text_bytes` is the size of what a tokenizer would see (the whole body is an upper bound).
    `needs` names what a target must be able to do beyond text: `tools`, `images`, `json_schema`.
    `inputs` counts what an embeddings call wants a vector of each of.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage: bool
    model_span: Span
    stream_options_span: Span | None
    object_start: int
    max_output_tokens: int | None
    choices: int
    text_bytes: int
    limit_spans: tuple[Span, ...] = ()
    needs: frozenset[str] = NOTHING_SPECIAL
    inputs: int = 1


@dataclass(frozen=True, slots=True)
class Price:
    """Whole pico-USD (1e-12 USD) per token.

    A prompt of more than `above_tokens` is charged at `above` from its first token on, answer
    included, as the providers of long contexts do; 0 and None where there is one price.
    `cache_write` is of what a prompt cache was written with, None: as any input;
    `cache_write_1h` of what it keeps for an hour, None: as any of that.
    """

    input: int
    output: int
    cached_input: int
    above_tokens: int = 0
    above: Price | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None

    def of(self, input_tokens: int) -> Price:
        """Return the price that a prompt of so many tokens has."""
        if self.above is None or input_tokens <= self.above_tokens:
            return self
        return self.above


class Target(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """One place that can serve a model: an Envoy cluster and the model's name there.

    `lacks` names what it cannot do, of what a call may need, and as `/name` the endpoints it has
    not; what nobody wrote down is taken as possible. `key` is what its health is kept under.
    The hash is kept, because plans are looked up per call.
    """

    provider: str
    model: str
    weight: int
    price: Price | None
    max_retries: int = 0
    dialect: Dialect = "openai"
    context_window: int | None = None
    lacks: frozenset[str] = NOTHING_SPECIAL
    key: str = ""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "key", f"{self.provider}/{self.model}")


def cluster_of(provider: str, dialect: Dialect, caller: Dialect) -> str:
    """Name the Envoy cluster of a provider: its own, or the one that translates for a caller."""
    return provider if dialect == caller else f"{provider}+{caller}"  # no provider's name has a +


def provider_of(cluster: str) -> str:
    """Return whose cluster it is."""
    return cluster.partition("+")[0]


def caller_of(cluster: str) -> Dialect:
    """Return the dialect a translating cluster translates for."""
    return "anthropic" if cluster.endswith("+anthropic") else "openai"


@dataclass(frozen=True, slots=True)
class Model:
    """A public model name and the ordered targets behind it.

    `sticky`: a weighted draw is the key's, not the call's. `fallback` names the models that take
    over a call whose prompt fits no target's context window.
    """

    name: str
    strategy: str
    targets: tuple[Target, ...]
    max_output_tokens: int = 4096  # of a call that gives none, where a limit counts them
    strict: bool = False  # refuse what a translation would lose
    sticky: bool = False
    fallback: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What Envoy executes: attempt n goes to target n, `timeout_ms` bounds them all together.

    `first_byte_ms` bounds how long one attempt may take to begin its answer; None: no such bound.
    """

    attempts: tuple[Target, ...]
    timeout_ms: int
    first_byte_ms: int | None = None


def once(attempts: tuple[Target, ...]) -> tuple[Target, ...]:
    """Return the attempts without the repetitions of the last: past the end it is tried again."""
    end = len(attempts)
    while end > 1 and attempts[end - 2] == attempts[end - 1]:
        end -= 1
    return attempts[:end]


class UsageSource(StrEnum):
    """Where token counts came from."""

    PROVIDER = "provider"
    ESTIMATED = "estimated"
    PARTIAL = "partial"
    NONE = "none"  # the provider answered with an error: nothing was used


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one answer.

    `cached_input` is the part of `input` served from a prompt cache, `cache_write` the part one was
    written with, and `cache_write_1h` the part of that which it keeps for an hour.
    """

    input: int
    output: int
    cached_input: int
    source: UsageSource
    cache_write: int = 0
    cache_write_1h: int = 0


class Ended(StrEnum):
    """How the HTTP exchange with the client ended."""

    FINISHED = "finished"  # a complete 2xx answer
    FAILED = "failed"  # a complete error answer, the provider's or Envoy's
    PARTIAL = "partial"  # cut by the client, the provider or a timeout


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """One access-log entry of a planned call, as Envoy wrote it.

    Times are milliseconds, None where that never happened.
    `usage` is the fragment the response probe kept; `events` and `done` are what it saw. `answer`
    is all of a whole answer that was to be kept, `answer_form` json or sse; else both are empty.
    `keyless`: Envoy has no credential for the provider, which therefore was not asked.
    """

    record: str
    request_id: str
    status: int
    cluster: str
    attempts: int
    flags: tuple[str, ...]
    start_ms: int
    duration_ms: float
    first_upstream_tx_ms: float | None
    first_upstream_rx_ms: float | None
    first_chunk_ms: float | None
    request_bytes: int
    response_bytes: int
    usage: str
    events: int
    done: bool
    first_downstream_tx_ms: float | None = None
    answer: bytes = b""
    answer_form: str = ""
    keyless: bool = False


@final
class FailedAttempt(msgspec.Struct, frozen=True, gc=False):
    """One attempt that a provider did not answer well, as Envoy logs it when it ends.

    `status` is 0 where there was no answer, `flags` why; the last two are the answer's own words.
    """

    provider: str
    model: str
    status: int
    flags: tuple[str, ...]
    retry_after: str
    resets: str


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One ledger row: a call that was planned, and what it came to.

    Times are unix milliseconds and durations milliseconds; cost is None when no price is known.
    `retried` names the providers of the attempts before the last, in order. `cache` is `hit` or
    `collapsed` where a kept answer was told, of `provider` and `served_model` at the time.
    """

    id: str
    request_id: str
    time_ms: int
    tenant: str
    key_id: str
    endpoint: str
    model: str
    provider: str
    served_model: str
    stream: bool
    status: int
    ended: Ended
    usage: Usage
    cost_pico_usd: int | None
    attempts: int
    duration_ms: int
    ttft_ms: int | None
    request_bytes: int
    response_bytes: int
    flags: str
    retried: tuple[str, ...] = ()
    cache: Told = ""


class Continue(msgspec.Struct, frozen=True, gc=False):
    """Let the request go on; ask for its body. `set_headers` are put on the request.

    `may_complete`: its answer may be asked for too, which is said now or never.
    """

    set_headers: tuple[tuple[str, bytes], ...] = ()
    remove_headers: tuple[str, ...] = ()
    may_complete: bool = False


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Send the call upstream; `body` is None when the bytes stay as they are."""

    plan: Plan
    call: Call
    principal: Principal
    id: str
    body: bytes | None
    model_span: Span  # in the body as forwarded
    strip_usage: bool
    body_bytes: int
    headers: tuple[tuple[str, bytes], ...] = ()  # for the answer: limits, what the cache did
    hold: Hold | None = None
    filling: Filling | None = None  # where the answer is to be kept, if it weighs no more than
    keep_bytes: int = 0  # this
    complete: Complete | None = None  # where the answer is a part of what the client is to get


@final
class Reply(msgspec.Struct, frozen=True, gc=False):
    """Answer the client from here."""

    status: int
    body: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
