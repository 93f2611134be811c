"""Rung 4: the full product, started the way an operator starts it. The one place to adjust.

Everything that depends on the product's commands, file names and configuration is in this file:
`keys create` makes the caller's key, `bundle` writes Envoy's configuration, `serve` is the
processor, Envoy runs in the state directory.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import envoy
from benchmarks.processes import HOST, Child, StartError, free_port, running, wait_path, wait_port
from extproc.schema import Config

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "extproc.cli")
CONFIG = "llm-edge.json"  # JSON is YAML
STATE = "state"
ENVOY = "envoy"  # below the state directory: where the bundle goes and Envoy runs
BOOTSTRAP = "bootstrap.yaml"  # what `bundle --out DIR` writes for Envoy
SOCKET = "extproc.sock"  # where the processor listens, in Envoy's directory
COMMAND_SECONDS = 60
MODEL = "bench-model"
STREAM_MODEL = "bench-stream"
PRICE = {"input": 0.15, "output": 0.60}


@dataclass(frozen=True, slots=True)
class Product:
    """The running product: where it listens, how to call it, what to measure."""

    port: int
    key: str
    processor: Child
    envoy: Child
    socket: Path


def wheel(bench: Path) -> Path:
    """Unpack the wheel of `make wheel` below `bench` and return where: compiled, as shipped."""
    found = sorted((ROOT / "dist").glob("llm_edge_agent-*.whl"))
    if not found:
        raise StartError("no wheel in dist/: run `make wheel`")
    # One folder a build, because what runs from an older one still reads it.
    home = bench / f"wheel-{found[-1].stat().st_mtime_ns}"
    if not home.is_dir():
        for old in bench.glob("wheel-*"):
            shutil.rmtree(old, ignore_errors=True)
        with zipfile.ZipFile(found[-1]) as packed:
            packed.extractall(home)
    return home


def config(port: int, admin_port: int, json_port: int, sse_port: int) -> dict[str, Any]:
    """Return the configuration: every feature on, no limit low enough to refuse the load."""

    def model(provider: str) -> dict[str, object]:
        target = {"provider": provider, "model": MODEL, "usd_per_million": PRICE}
        return {"strategy": "priority", "targets": [target]}

    many = 10_000_000
    wanted: dict[str, Any] = {
        "server": {"host": HOST, "port": port, "drain_seconds": 1},
        "admin": {"host": HOST, "port": admin_port},
        "state": {"dir": STATE, "store": "memory"},
        "tiers": {
            "enterprise": {
                "requests_per_second": many,
                "burst": many,
                "concurrent_requests": many,
                "tokens_per_minute": many * 1000,
                "tokens_per_day": many * 1000,
                "usd_per_month": many,
            }
        },
        "limits": {
            "global": {"requests_per_second": many, "burst": many},
            "per_ip": {"requests_per_second": many, "burst": many},
        },
        "providers": {
            "mock": {"dialect": "openai", "endpoint": f"http://{HOST}:{json_port}/v1"},
            "mock-sse": {"dialect": "openai", "endpoint": f"http://{HOST}:{sse_port}/v1"},
        },
        "models": {MODEL: model("mock"), STREAM_MODEL: model("mock-sse")},
        # Because the load asks the same again and again, and would measure nothing but hits.
        "cache": {"enabled": False},
    }
    known = frozenset(Config.model_fields)  # a section the product does not have yet is left out
    return {section: value for section, value in wanted.items() if section in known}


@contextlib.contextmanager
def product(
    run: Path,
    json_port: int,
    sse_port: int,
    name: str = "product",
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
    tree: Path = ROOT,
) -> Iterator[Product]:
    """Run the product of a tree below `run`; yield it when its gateway port answers.

    `change` is shown the configuration before it is written.
    """
    home = run / name
    envoy_home = home / STATE / ENVOY
    envoy_home.mkdir(parents=True, mode=0o700)
    port, admin_port = free_port(), free_port()
    wanted = config(port, admin_port, json_port, sse_port)
    if change is not None:
        change(wanted)
    (home / CONFIG).write_text(json.dumps(wanted, indent=1))
    env = {"PYTHONPATH": str(tree)}
    _command(env, home, "bundle", "--out", f"{STATE}/{ENVOY}")
    created = _command(env, home, "keys", "create", "--tier", "enterprise", "--name", "bench")
    key = next((word for word in created.split() if word.startswith("sk_")), "")
    if not key:
        raise StartError(f"keys create printed no key: {created[-300:]}")
    serve = [*COMMAND, "serve", "--config", CONFIG]
    with running("processor", serve, home, env) as processor:
        wait_path(envoy_home / SOCKET, processor)
        wait_port(admin_port, processor)
        with running("envoy", envoy.argv(Path(BOOTSTRAP)), envoy_home) as proxy:
            wait_port(port, proxy)
            yield Product(port, key, processor, proxy, envoy_home / SOCKET)


def _command(env: dict[str, str], home: Path, *words: str) -> str:
    argv = [*COMMAND, words[0], *words[1:], "--config", CONFIG]
    done = subprocess.run(
        argv,
        cwd=home,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise StartError(f"llm-edge {' '.join(words)} ended with {done.returncode}: {said}")
    return done.stdout
