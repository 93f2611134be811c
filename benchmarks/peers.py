"""Rungs 5 and 6: other gateways, each installed into an environment of its own below `.bench/`.

Versions are pinned so that two runs compare. Knows how to install, start and call them. A peer that
cannot be had is a `StartError`; the caller prints it and goes on without.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.processes import HOST, Child, StartError, free_port, running, wait_port

LITELLM = "litellm[proxy]==1.106.2"
PORTKEY = "@portkey-ai/gateway@1.15.2"
INSTALL_SECONDS = 420
LITELLM_START_SECONDS = 90.0  # it imports for ten seconds on an idle machine
MASTER_KEY = "sk-bench-master-key"
MODEL = "bench-model"
UPSTREAM_KEY = "sk-bench-upstream"


@contextlib.contextmanager
def litellm(bench: Path, run: Path, upstream_port: int) -> Iterator[tuple[int, Child]]:
    """Run the LiteLLM proxy, one worker, production mode, master key; yield port and process."""
    home = bench / "litellm"
    script = home / "bin" / "litellm"
    if not _installed(home, LITELLM):
        _announce(LITELLM)
        shutil.rmtree(home, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(home)])
        _install([str(home / "bin" / "pip"), "install", "-q", LITELLM])
        _mark(home, LITELLM)
    port = free_port()
    upstream = {
        "model": f"openai/{MODEL}",
        "api_base": f"http://{HOST}:{upstream_port}/v1",
        "api_key": UPSTREAM_KEY,
    }
    config = run / "litellm.json"  # JSON is YAML
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": upstream}],
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"telemetry": False},
    }
    config.write_text(json.dumps(settings))
    argv = [str(script), "--config", str(config), "--host", HOST, "--port", str(port)]
    env = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running("litellm", [*argv, "--num_workers", "1"], run, env) as child:
        wait_port(port, child, LITELLM_START_SECONDS)
        yield port, child


def litellm_headers() -> dict[str, str]:
    return {"authorization": f"Bearer {MASTER_KEY}"}


@contextlib.contextmanager
def portkey(bench: Path, run: Path) -> Iterator[tuple[int, Child]]:
    """Run the Portkey gateway; yield port and process."""
    home = bench / "portkey"
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise StartError("node and npm are not installed")
    if not _installed(home, PORTKEY):
        _announce(PORTKEY)
        shutil.rmtree(home, ignore_errors=True)
        _install([npm, "install", "--prefix", str(home), "--no-audit", "--no-fund", PORTKEY])
        _mark(home, PORTKEY)
    port = free_port()
    server = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    env = {"TRUSTED_CUSTOM_HOSTS": HOST, "NODE_ENV": "production"}
    with running("portkey", [node, str(server), f"--port={port}", "--headless"], run, env) as child:
        wait_port(port, child)
        yield port, child


def portkey_headers(upstream_port: int) -> dict[str, str]:
    return {
        "authorization": f"Bearer {UPSTREAM_KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://{HOST}:{upstream_port}/v1",
    }


def _installed(home: Path, version: str) -> bool:
    with contextlib.suppress(OSError):
        return (home / "installed").read_text() == version
    return False


def _mark(home: Path, version: str) -> None:
    (home / "installed").write_text(version)


def _announce(what: str) -> None:
    print(f"installing {what} (once, below .bench/)", flush=True)


def _install(argv: Sequence[str]) -> None:
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise StartError(f"{argv[0]} took more than {INSTALL_SECONDS} s") from error
    if done.returncode:
        raise StartError(f"{Path(argv[0]).name} failed: {(done.stderr or done.stdout)[-600:]}")
