"""A reservation as it travels with its call, where no ledger of this process keeps it.

Knows: names and numbers. Must not know: who charges or settles them. Apart from `limits`, because
that is compiled and a Struct with these arguments cannot be.
"""

from __future__ import annotations

import msgspec


class Hold(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What any process can settle the call by.

    `accounts` are names with a bit per charged slot; `amount` and `windows` as they were charged.
    """

    accounts: tuple[tuple[str, int], ...]
    amount: tuple[int, int, int]
    windows: tuple[int, int, int]
