"""The admin port of one processor, put together.

Knows: what of a processor is shown and changed there. Must not know: how any of it works. Loaded by
a processor that serves already, because FastAPI takes its time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from extproc import __version__
from extproc.admin.app import create_app
from extproc.admin.cache import CacheAdmin
from extproc.admin.explain import Explaining
from extproc.admin.keys import KeyAdmin
from extproc.admin.readiness import Readiness
from extproc.admin.server import AdminServer, start, start_local
from extproc.domain import Head
from extproc.policies.breaker import State
from extproc.schema import Config
from extproc.stores.keys import KeyStore
from extproc.stores.open_answers import AnswerStores
from extproc.stores.tiered_answers import TieredAnswers


@dataclass(frozen=True, slots=True)
class Shown:
    """The parts of a processor that its admin port shows; `answers` is None without a cache."""

    ready: Callable[[], Awaitable[Readiness]]
    metrics: Callable[[], tuple[bytes, str]]
    failed: Callable[[str, str], None]  # counts a store's failure by operation
    store: KeyStore
    answers: AnswerStores | None
    explain: Callable[[str | None, Head, bytes], Awaitable[dict[str, Any]]]
    breakers: Callable[[], Mapping[str, State]]


async def open_port(
    shown: Shown, config: Config, env: Mapping[str, str], path: Path | None
) -> AdminServer:
    """Listen on the configured address, or on a socket at `path`. Raises OSError."""
    app = create_app(
        ready=shown.ready,
        metrics=shown.metrics,
        version=__version__,
        keys=KeyAdmin(
            shown.store,
            frozenset(config.tiers),
            time.time,
            os.urandom,
            partial(shown.failed, "keys"),
        ),
        explaining=Explaining(shown.explain, shown.breakers),
        caching=None
        if shown.answers is None
        else _cache(shown.answers, partial(shown.failed, "cache")),
        token=config.admin.token,
        env=env,
    )
    if path is None:
        return await start(app, config.admin.host, config.admin.port)
    return await start_local(app, path)


def _cache(stores: AnswerStores, failed: Callable[[str], None]) -> CacheAdmin:
    answers = stores.answers
    return CacheAdmin(
        cache=answers,
        stats=stores.near.stats,
        flights=stores.flights.stats,
        failed=failed,
        shared=answers.far.stats if isinstance(answers, TieredAnswers) else None,
    )
