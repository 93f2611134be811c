"""The Lua scripts of the shared ledger and the form in which they get a scope's rules.

Knows: the files beside it, msgpack. Must not know: connections or calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha1
from pathlib import Path
from typing import Final

import msgspec

from extproc.limits import MAX_LIMIT, US_PER_MS, Rules, Window

LIMB: Final = 10**9  # of a limit, so that Lua's doubles hold it exactly
_TTL_MS: Final = {Window.MINUTE: 120_000, Window.DAY: 172_800_000, Window.MONTH: 2_764_800_000}
_pack: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name Redis knows it by."""

    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str) -> Script:
        """Read one of the scripts beside this file."""
        text = Path(__file__).with_name("lua").joinpath(name).read_bytes()
        # Redis names scripts by SHA-1; nothing is kept secret or safe by it.
        return cls(text, sha1(text, usedforsecurity=False).hexdigest().encode())


ADMIT: Final = Script.load("admit.lua")
SETTLE: Final = Script.load("settle.lua")


@lru_cache(maxsize=1024)  # tiers by scopes, and the same divided by the number of replicas
def rules_blob(rules: Rules) -> bytes:
    """Write a scope's rules as admit.lua reads them."""
    ttl_ms = max(
        [rules.tolerance_us // US_PER_MS + 1_000, *(_TTL_MS[m.window] for m in rules.meters)]
    )
    fields = fields_of(rules)
    meters = []
    for meter in rules.meters:
        high, low = divmod(min(meter.limit, MAX_LIMIT), LIMB)
        meters.append((meter.slot, meter.unit, meter.window, meter.budget, high, low))
    form = (rules.interval_us, rules.tolerance_us, rules.concurrent, ttl_ms, fields, meters)
    return _pack(form)


def fields_of(rules: Rules) -> list[str]:
    """Name the fields of an account's hash that a scope's rules read, in their order."""
    fields = ["t"]
    for meter in rules.meters:
        fields += [f"w{meter.slot}", f"u{meter.slot}"]
    return fields


@lru_cache(maxsize=1024)
def scaled(rules: Rules, replicas: int) -> Rules:
    """Return one replica's share of the rules: together they allow no more, each at least one."""
    return replace(
        rules,
        interval_us=rules.interval_us * replicas,
        tolerance_us=rules.interval_us * replicas * max(1, rules.burst // replicas),
        burst=max(1, rules.burst // replicas) if rules.interval_us else 0,
        concurrent=max(1, rules.concurrent // replicas) if rules.concurrent else 0,
        meters=tuple(
            [replace(meter, limit=max(1, meter.limit // replicas)) for meter in rules.meters]
        ),
    )
