"""The module that holds headers, as bytes; what it does is shown on Envoy in test_attempts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from extproc.bundle.hold import NAME, hold, module
from extproc.bundle.render import render
from extproc.domain import provider_of

from .harness import configured


def sections(code: bytes) -> dict[int, bytes]:
    """Return the sections of a module by number, by a reading of our own."""
    assert code[:8] == b"\0asm\x01\0\0\0"
    found, at = {}, 8
    while at < len(code):
        number, size, at, shift = code[at], 0, at + 1, 0
        while True:
            byte, at = code[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found[number] = code[at : at + size]
        at += size
    assert at == len(code)
    return found


def test_the_module_is_well_formed_and_imports_nothing() -> None:
    """Types, functions, one page of memory, exports, code: it can call nothing outside itself."""
    found = sections(module())
    assert sorted(found) == [1, 3, 5, 7, 10]
    assert found[5] == b"\x01\x00\x01"
    assert found[3] == bytes((5, 0, 1, 2, 3, 4))
    names = (b"proxy_on_response_headers", b"proxy_on_response_body", b"malloc", b"memory")
    assert all(name in found[7] for name in names)


@pytest.mark.parametrize(
    ("providers", "held"), [(["a"], []), (["a", "b"], ["a", "b"])], ids=["alone", "with another"]
)
def test_answers_are_held_where_another_target_could_answer(
    tmp_path: Path, providers: list[str], held: list[str]
) -> None:
    """Elsewhere it would cost and buy nothing."""
    endpoint = {"dialect": "openai", "endpoint": "http://127.0.0.1:9/v1"}
    targets = [{"provider": name, "model": "m"} for name in providers]
    written = {"providers": {"a": endpoint, "b": endpoint}, "models": {"m": {"targets": targets}}}
    clusters = yaml.safe_load(render(configured(tmp_path, written))["cds.yaml"])["resources"]
    found = {provider_of(one["name"]) for one in clusters if NAME in yaml.safe_dump(one)}
    assert found == set(held)


def test_a_failing_machine_is_no_reason_to_fail_a_call() -> None:
    """Open: answers pass unheld. The same bytes every time, so that the bundle is."""
    assert hold().to_dict()["config"]["failurePolicy"] == "FAIL_OPEN"
    assert module() == module()
