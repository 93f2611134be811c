"""What every call is handled with: the parts of a gateway, a caller, a plan.

Knows: ports, the snapshot. Must not know: what is decided on a call,
protobuf, transports or where state is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import msgspec

from extproc.answers import Complete, Entry, Inputs, Told
from extproc.domain import Call, Endpoint, Head, Plan, Principal, Reply
from extproc.policies.estimate import Estimator
from extproc.policies.health import Health
from extproc.ports import Coalescing, Identify, Ledger, Observer, ResponseCache, Tracer
from extproc.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Caching:
    """Where answers are kept, and who waits for one."""

    answers: ResponseCache
    flights: Coalescing


@dataclass(slots=True)
class Gateway:
    """What every call needs; `snapshot` is replaced whole on reload.

    `clock` is unix seconds, `steady` seconds that never jump, `new_id` gives unguessable ids,
    `draw` is uniform in [0, 1).
    """

    snapshot: Snapshot
    identity: Identify
    observer: Observer
    ledger: Ledger
    estimator: Estimator
    health: Health
    clock: Callable[[], float]
    steady: Callable[[], float]
    new_id: Callable[[], str]
    draw: Callable[[], float]
    tracer: Tracer | None = None  # None: nobody asked for spans
    caching: Caching | None = None  # None: no answer is kept


class Identified(msgspec.Struct, frozen=True, gc=False):
    """A caller at an endpoint, before the body is read."""

    head: Head
    endpoint: Endpoint
    principal: Principal
    request_id: str
    snapshot: Snapshot


class Planned(msgspec.Struct, frozen=True, gc=False):
    """A call that may be sent, its body as it came; `id` is the processor's own."""

    id: str
    identified: Identified
    call: Call
    plan: Plan
    body: bytes


class Miss(msgspec.Struct, frozen=True, gc=False):
    """A call that goes upstream.

    `status` is the header of its answer, empty where there is none to be. `digest` is empty where
    the answer is not kept. `leads`: others may wait for it, under `key`. `waited_ms` is how long
    the call waited for another's answer, None where it did not. `inputs` are those of a batch of
    embeddings. `part` is sent in place of a batch of which the rest is known, and its answer is
    told by `complete`.
    """

    status: bytes = b""
    digest: bytes = b""
    ttl_ms: int = 0
    key: bytes = b""
    leads: bool = False
    waited_ms: int | None = None
    inputs: Inputs | None = None
    part: Planned | None = None
    complete: Complete | None = None


NOT_ASKED: Final = Miss()


@final
class Hit(msgspec.Struct, frozen=True, gc=False):
    """Tell the client a kept answer; `reply` is what it is told in."""

    id: str
    principal: Principal
    call: Call
    entry: Entry
    told: Told
    reply: Reply
