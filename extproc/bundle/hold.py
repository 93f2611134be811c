"""Holds an answer's headers until its first byte, so that silence before it can be tried elsewhere.

Knows: WebAssembly's binary format and three functions of the proxy-wasm ABI 0.2.1. Must not know:
routes, providers, what an answer holds. Because Envoy lets go of an attempt's time limit when the
headers come, and many providers send those at once and the first token when it is ready.

The module is eleven instructions: `proxy_on_response_headers` says StopIteration unless the answer
ends there, `proxy_on_response_body` says Continue, which sends the headers and all that follows.
It sees no byte of an answer and keeps nothing.
Source: https://webassembly.github.io/spec/core/binary, https://github.com/proxy-wasm/spec
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from envoy_data_plane.envoy.config.core.v3 import AsyncDataSource, DataSource
from envoy_data_plane.envoy.extensions.filters.http.wasm.v3 import Wasm
from envoy_data_plane.envoy.extensions.wasm.v3 import FailurePolicy, PluginConfig, VmConfig

NAME: Final = "llm-edge.hold"
RUNTIME: Final = "envoy.wasm.runtime.v8"
_MAGIC: Final = b"\0asm\x01\0\0\0"
_I32: Final = b"\x7f"
_FUNCTION, _MEMORY = b"\x00", b"\x02"  # kinds of exports
_ZERO: Final = b"\x41\x00"  # i32.const 0
_NOT_THIRD: Final = b"\x20\x02\x45"  # local.get 2, i32.eqz: 1 where the answer goes on
# Name, number of i32 arguments, whether it returns one, instructions.
_FUNCTIONS: Final = (
    ("proxy_abi_version_0_2_1", 0, False, b""),
    ("malloc", 1, True, _ZERO),  # Envoy insists on one; nothing ever needs its memory
    ("proxy_on_context_create", 2, False, b""),
    ("proxy_on_response_headers", 3, True, _NOT_THIRD),  # 1 is StopIteration
    ("proxy_on_response_body", 3, True, _ZERO),  # 0 is Continue
)


def hold() -> Wasm:
    """Return the filter. If the machine cannot run it, answers pass as if it were not there."""
    return Wasm(
        config=PluginConfig(
            name=NAME,
            root_id=NAME,
            failure_policy=FailurePolicy.FAIL_OPEN,
            # Otherwise StopIteration would stop the body too, which is what is waited for.
            allow_on_headers_stop_iteration=True,
            vm_config=VmConfig(
                vm_id=NAME,
                runtime=RUNTIME,
                code=AsyncDataSource(local=DataSource(inline_bytes=module())),
            ),
        )
    )


def module() -> bytes:
    """Assemble the module."""
    types = [
        b"\x60" + _vector([_I32] * arguments) + _vector([_I32] * returns)
        for _, arguments, returns, _ in _FUNCTIONS
    ]
    exports = [_text("memory") + _MEMORY + b"\x00"]
    exports += [
        _text(name) + _FUNCTION + bytes((index,)) for index, (name, *_) in enumerate(_FUNCTIONS)
    ]
    bodies = [_sized(b"\x00" + code + b"\x0b") for *_, code in _FUNCTIONS]  # no locals, code, end
    return (
        _MAGIC
        + _section(1, types)
        + _section(3, [bytes((index,)) for index in range(len(_FUNCTIONS))])
        + _section(5, [b"\x00\x01"])  # one page of memory
        + _section(7, exports)
        + _section(10, bodies)
    )


def _section(number: int, items: Sequence[bytes]) -> bytes:
    return bytes((number,)) + _sized(_vector(items))


def _vector(items: Sequence[bytes]) -> bytes:
    return _length(len(items)) + b"".join(items)


def _sized(content: bytes) -> bytes:
    return _length(len(content)) + content


def _text(name: str) -> bytes:
    return _sized(name.encode())


def _length(number: int) -> bytes:
    """Encode an unsigned number below 2**14 in LEB128."""
    low, high = number & 0x7F, number >> 7
    return bytes((low | 0x80, high)) if high else bytes((low,))
