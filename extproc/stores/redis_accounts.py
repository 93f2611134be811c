"""Reads the shared ledger's accounts, as its scripts keep them, without changing anything.

Knows: the names and fields of an account in Redis. Must not know: calls, or what is decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import hiredis

from extproc.limits import US_PER_MS, US_PER_S, Rules
from extproc.policies.quota import Account, Held
from extproc.stores.link import Link, Unavailable
from extproc.stores.scripts import fields_of

TIME: Final = (b"TIME",)


async def read_accounts(
    link: Link, prefix: str, subjects: Sequence[tuple[str, Rules]]
) -> tuple[list[Held], int]:
    """Return the accounts with their leases counted, and Redis' time in unix microseconds.

    Each account is as of one moment, several together need not be. Raises Unavailable.
    """
    seconds, micros = await _reply(link, *TIME)
    now_us = int(seconds) * US_PER_S + int(micros)
    after = b"(%d" % (now_us // US_PER_MS)  # a lease that ends now has ended
    asked = []
    for name, rules in subjects:
        account, leases = f"{prefix}a:{name}".encode(), f"{prefix}c:{name}".encode()
        fields = [field.encode() for field in fields_of(rules)]
        asked.append(_reply(link, b"HMGET", account, *fields))
        asked.append(_reply(link, b"ZCOUNT", leases, after, b"+inf"))
    replies = await asyncio.gather(*asked)
    held = []
    for at, (_, rules) in enumerate(subjects):
        account_now = account_of(rules, replies[2 * at])
        account_now.active = replies[2 * at + 1]
        held.append((account_now, rules))
    return held, now_us


async def _reply(link: Link, *parts: bytes) -> Any:
    reply = await link.send(*parts)
    if isinstance(reply, hiredis.ReplyError):
        raise Unavailable("refused")
    return reply


def account_of(rules: Rules, read: Sequence[bytes | None]) -> Account:
    """Return the account that the values of `fields_of(rules)` tell."""
    account = Account()
    account.tat_us = int(read[0] or 0)
    for at, meter in enumerate(rules.meters):
        account.ids[meter.slot] = int(read[2 * at + 1] or 0)
        account.used[meter.slot] = int(read[2 * at + 2] or 0)
    return account
