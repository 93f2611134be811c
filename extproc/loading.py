"""Load the processor's modules quickly: a gateway whose processor starts again waits for them.

Knows: what loading costs. Must not know: what the modules do.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType
from typing import Final

# What pybreaker loads for a storage of its that is not used here: 0.16 s, a quarter of all.
_NOT_FOR_PYBREAKER: Final = "redis"


def load(name: str) -> ModuleType:
    """Import a module that brings the processor's libraries, without what they need not bring.

    Collections are off from here on, because all that is loaded stays: they took 0.1 s and found
    nothing. `extproc.server` turns them on when it serves.
    """
    gc.disable()
    if _NOT_FOR_PYBREAKER not in sys.modules:
        sys.modules[_NOT_FOR_PYBREAKER] = None  # type: ignore[assignment]  # "cannot be imported"
        try:
            import_module("pybreaker")
        finally:
            del sys.modules[_NOT_FOR_PYBREAKER]
    return import_module(name)
