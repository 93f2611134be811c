"""A processor that starts again loads what it needs and no more."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import gc, json, sys
from extproc.loading import load
server = load("extproc.server")
print(json.dumps({
    "serves": callable(server.serve),
    "collects": gc.isenabled(),
    "breaker": sys.modules["pybreaker"].HAS_REDIS_SUPPORT,
    "loaded": [name for name in ("redis", "grpc", "fastapi", "opentelemetry") if name in sys.modules],
}))
import redis  # the Redis stores find it afterwards
"""


def test_the_processor_is_loaded_without_what_a_memory_store_on_a_unix_socket_does_not_need() -> (
    None
):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "serves": True,
        "collects": False,
        "breaker": False,
        "loaded": [],
    }
