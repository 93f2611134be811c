"""Starts the real thing for tests: simulated providers, the processor and Envoy, as processes.

Knows: commands, ports and logs. Must not know: what a test asserts.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from click.testing import CliRunner

from extproc.bundle.render import write as write_bundle
from extproc.checks import envoy_binary
from extproc.cli import main
from extproc.config import load

from .config import SIMULATED, default_config
from .ports import free_port

PATIENCE_S = 30.0
TAIL_BYTES = 6000
# Named by `make test-grpcio`; tests that run on each transport then run on this one.
NAMED_TRANSPORT = os.environ.get("LLM_EDGE_TEST_TRANSPORT")
TRANSPORTS = (NAMED_TRANSPORT,) if NAMED_TRANSPORT else ("lane", "grpcio")
PROVIDERS = Path(__file__).with_name("providers.py")


def wait_for(what: str, probe: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Poll until the probe gives something true; fail with `what` after the patience."""
    deadline = time.monotonic() + patience_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(0.02)  # the pace of a poll, never a wait for a fixed time


@dataclass
class Service:
    """One process with its log in a file."""

    name: str
    command: list[str]
    log: Path
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start or start again; the log goes on."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, cwd=self.cwd, env=self.env, stdout=out, stderr=out
            )

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self.process is not None
        return self.process.pid

    def signal(self, signum: int) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(signum)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for the end and return the exit code."""
        assert self.process is not None
        return self.process.wait(patience_s)

    def stop(self) -> None:
        """End it, by force if need be."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self) -> str:
        """Return the end of the log."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace")

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Return the resident memory in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1000


@dataclass
class Stack:
    """A running gateway: `base` is its URL, `sims` maps provider names to their simulators' URLs."""

    directory: Path
    config: dict[str, Any]
    port: int
    admin_port: int
    processor: Service
    envoy: Service
    sims: dict[str, str]
    services: list[Service] = field(default_factory=list)

    @property
    def base(self) -> str:
        """Return the gateway's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        """Return the state directory."""
        return self.directory / "state"

    @property
    def file(self) -> Path:
        """Return the configuration file."""
        return self.directory / "llm-edge.yaml"

    def command(self, *words: str) -> str:
        """Run `llm-edge WORDS` with this configuration and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "extproc.cli", *words, "--config", str(self.file)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create_key(self, name: str, *words: str, tier: str = "enterprise") -> str:
        """Create an API key and return it, once the processor knows it."""
        wanted = ["--config", str(self.file), "--tier", tier, "--name", name, *words]
        done = CliRunner().invoke(main, ["keys", "create", *wanted])  # a process takes 0.3 s of CPU
        found = re.search(r"sk_[A-Za-z0-9_-]{43}", done.stdout)
        assert found is not None, done.output
        key = found[0]

        def known() -> bool:
            answer = httpx.get(f"{self.base}/v1/models", headers={"authorization": f"Bearer {key}"})
            return answer.status_code == 200

        wait_for("the new key to work", known)
        return key

    def admin_get(self, path: str) -> httpx.Response:
        """Ask the processor's admin port."""
        return httpx.get(f"http://127.0.0.1:{self.admin_port}{path}")

    def envoy_stats(self, pattern: str) -> dict[str, int]:
        """Read Envoy's counters and gauges whose names match."""
        transport = httpx.HTTPTransport(uds=str(self.state / "envoy" / "envoy-admin.sock"))
        with httpx.Client(transport=transport) as client:
            text = client.get("http://envoy/stats", params={"filter": pattern}).text
        stats = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdigit():
                stats[name] = int(value)
        return stats

    def sim_log(self, provider: str) -> list[dict[str, Any]]:
        """Return a simulated provider's truth log."""
        text = httpx.get(f"{self.sims[provider]}/sim/requests").text
        return [json.loads(line) for line in text.splitlines()]

    def clear_sims(self) -> None:
        """Empty the truth logs and reset the behaviours."""
        for url in self.sims.values():
            httpx.delete(f"{url}/sim/requests").raise_for_status()
            httpx.post(f"{url}/sim/behaviour", json={}).raise_for_status()

    def behave(self, provider: str, **behaviour: Any) -> None:
        """Set a simulated provider's sticky behaviour."""
        httpx.post(f"{self.sims[provider]}/sim/behaviour", json=behaviour).raise_for_status()

    def rows(self, query: str = "SELECT * FROM outcomes", *values: Any) -> list[dict[str, Any]]:
        """Read the ledger."""
        path = self.state / "ledger.db"
        if not path.exists():
            return []
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(query, values)]
        finally:
            db.close()

    def rows_for(
        self, key_name: str, count: int, patience_s: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        """Wait until the ledger has at least `count` rows of a key's tenant and return them."""
        query = "SELECT * FROM outcomes WHERE tenant = ? ORDER BY time_ms"
        wait_for(
            f"{count} ledger rows of {key_name}",
            lambda: len(self.rows(query, key_name)) >= count,
            patience_s,
        )
        return self.rows(query, key_name)

    def wait_ready(self) -> None:
        """Return once the providers listen, the processor is ready and Envoy attached."""

        def ready() -> bool:
            for service in self.services:
                assert service.process is not None
                assert service.process.poll() is None, f"{service.name} ended:\n{service.tail()}"
            try:
                for url in self.sims.values():
                    httpx.get(f"{url}/sim/requests").raise_for_status()
                return self.admin_get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_for("readiness", ready)
        except AssertionError:
            detail = self.admin_get("/readyz").text
            raise AssertionError(f"not ready: {detail}\n{self.logs()}") from None

    def logs(self) -> str:
        """Return the ends of every log."""
        return "\n".join(f"--- {s.name}\n{s.tail()}" for s in self.services)

    def stop(self) -> None:
        """Stop everything, Envoy first."""
        for service in reversed(self.services):
            service.stop()


def start_stack(
    directory: Path,
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
    env: Mapping[str, str] | None = None,
    concurrency: int = 1,
    transport: str = NAMED_TRANSPORT or "auto",
    simulated: Mapping[str, str] = SIMULATED,
) -> Stack:
    """Start the simulated providers, the processor and Envoy in a fresh directory."""
    environment = {**os.environ, **(env or {})}
    ports = {name: free_port() for name in simulated}
    sims = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    providers = Service(
        "providers",
        [sys.executable, str(PROVIDERS), *(f"{n}={simulated[n]}:{ports[n]}" for n in simulated)],
        directory / "providers.log",
    )
    port, admin_port = free_port(), free_port()
    config = default_config(directory, sims, port, admin_port, simulated)
    config["server"]["transport"] = transport
    if change is not None:
        change(config)
    file = directory / "llm-edge.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    bundle = directory / "state" / "envoy"
    bundle.mkdir(parents=True)
    processor = Service(
        "processor",
        [sys.executable, "-m", "extproc.cli", "serve", "--config", str(file)],
        directory / "processor.log",
        env=environment,
    )
    binary = envoy_binary()
    assert binary is not None
    envoy = Service(
        "envoy",
        [
            *(str(binary), "-c", "bootstrap.yaml", "-l", "warning", "--use-dynamic-base-id"),
            *("--concurrency", str(concurrency), "--disable-hot-restart"),
        ],
        directory / "envoy.log",
        cwd=bundle,
        env=environment,
    )
    services = [providers, processor, envoy]
    stack = Stack(directory, config, port, admin_port, processor, envoy, sims, services)
    try:
        providers.start()
        processor.start()
        write_bundle(load([file], environment), bundle)  # while those load
        envoy.start()
        stack.wait_ready()
    except BaseException:
        stack.stop()
        print(stack.logs())
        raise
    return stack


def interrupt(service: Service) -> None:
    """Send what Ctrl-C sends."""
    service.signal(signal.SIGINT)
