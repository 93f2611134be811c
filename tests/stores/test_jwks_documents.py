"""Key sets: which keys of a document verify, and where a document may come from."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from extproc.stores import jwks
from extproc.stores.jwks import fetch_source, parse_jwks, read_source
from tests.tokens import EC_JWK_ENTRY as EC_ENTRY
from tests.tokens import RSA_JWK_ENTRY as RSA_ENTRY
from tests.tokens import RSA_KEY, document

WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # too short on purpose
P384 = ec.generate_private_key(ec.SECP384R1())
P384_ENTRY: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(P384.public_key(), as_dict=True)


SKIPPED: dict[str, Any] = {
    "a symmetric key": {"kty": "oct", "kid": "x", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
    "a private key": jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True)
    | {"key_ops": ["verify"]},
    "a short RSA key": jwt.algorithms.RSAAlgorithm.to_jwk(WEAK.public_key(), as_dict=True),
    "a key for encryption": RSA_ENTRY | {"use": "enc"},
    "a key for signing only": RSA_ENTRY | {"key_ops": ["sign"]},
    "a key of another RSA algorithm": RSA_ENTRY | {"alg": "RS512"},
    "an RSA key that says HS256": RSA_ENTRY | {"alg": "HS256"},
    "an RSA key that says ES256": RSA_ENTRY | {"alg": "ES256"},
    "an RSA key that says none": RSA_ENTRY | {"alg": "none"},
    "an alg that is a list": RSA_ENTRY | {"alg": ["RS256"]},
    "a key of another curve": P384_ENTRY,
    "a P-384 key that says P-256": P384_ENTRY | {"crv": "P-256"},
    "a curve that is a list": EC_ENTRY | {"crv": ["P-256"]},
    "a P-384 key that says ES256": P384_ENTRY | {"alg": "ES256"},
    "an unknown type": {"kty": "XYZ"},
    "no type": {},
    "a kid that is a number": RSA_ENTRY | {"kid": 7},
    "a modulus that is a number": RSA_ENTRY | {"n": 7},
    "a modulus that is no base64": RSA_ENTRY | {"n": "!"},
    "a point off the curve": EC_ENTRY | {"x": EC_ENTRY["y"]},
    "no coordinates": {"kty": "EC", "crv": "P-256"},
    "a string": "RSA",
    "null": None,
}  # fmt: skip


@pytest.mark.parametrize("entry", SKIPPED.values(), ids=SKIPPED.keys())
def test_unusable_keys_are_skipped(entry: Any) -> None:
    """Keep the good key beside one that must not or cannot verify."""
    keys = parse_jwks(json.dumps({"keys": [entry, RSA_ENTRY | {"kid": "good"}]}).encode())
    assert set(keys) == {("good", "RS256")}


def test_both_kinds_are_kept_by_id_and_algorithm() -> None:
    """Keep RSA and P-256 keys, an equal id included."""
    entries = [RSA_ENTRY | {"kid": "a"}, EC_ENTRY | {"kid": "a", "use": "sig"}, EC_ENTRY]
    keys = parse_jwks(json.dumps({"keys": entries}).encode())
    assert set(keys) == {("a", "RS256"), ("a", "ES256"), (None, "ES256")}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


members = st.sampled_from(sorted(RSA_ENTRY | EC_ENTRY | {"alg": "", "use": "", "kid": ""}))


@given(st.sampled_from([RSA_ENTRY, EC_ENTRY]), members, json_values)
def test_any_member_is_skipped_or_read(entry: dict[str, Any], name: str, value: Any) -> None:
    """Never fail on a single broken key, whatever is broken about it."""
    text = json.dumps({"keys": [entry | {name: value}, RSA_ENTRY | {"kid": "good"}]})
    assert ("good", "RS256") in parse_jwks(text.encode())


@given(st.binary() | json_values.map(json.dumps).map(str.encode))
def test_any_document_is_a_set_or_a_value_error(text: bytes) -> None:
    """Fail on any document in one way."""
    with pytest.raises(ValueError, match=r"JSON|JWK Set"):
        parse_jwks(text)


Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(name="web")
def web_server() -> Iterator[tuple[str, dict[str, Answer]]]:
    """Serve canned answers over HTTP: the base address and the answers by path."""
    answers: dict[str, Answer] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


def still() -> float:
    """Stand still: a clock for reads that are not about time."""
    return 0.0


async def test_fetch_from_http_and_from_a_file(
    web: tuple[str, dict[str, Answer]], tmp_path: Path
) -> None:
    """Read a set from where the configuration says, redirects included."""
    base, answers = web
    answers["/jwks"] = (200, {"Content-Type": "application/json"}, document("k1"))
    answers["/moved"] = (302, {"Location": "/jwks"}, b"")
    file = tmp_path / "jwks.json"
    file.write_bytes(document("k1"))
    for source in (f"{base}/jwks", f"{base}/moved", str(file)):
        assert await fetch_source(source) == document("k1")


UNREADABLE: dict[str, Answer] = {
    "an error": (500, {}, document("k1")),
    "not found": (404, {}, document("k1")),
    "a redirect to a file": (302, {"Location": "file:///etc/hostname"}, b""),
    "a redirect to ftp": (302, {"Location": "ftp://127.0.0.1/x"}, b""),
    "a redirect to itself": (302, {"Location": "/x"}, b""),
    "too large": (200, {}, b" " * (jwks.MAX_DOCUMENT_BYTES + 1)),
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_answers_that_are_failures(web: tuple[str, dict[str, Answer]], answer: Answer) -> None:
    """Fail with OSError or ValueError, which the cache takes for an outage."""
    base, answers = web
    answers["/x"] = answer
    with pytest.raises((OSError, ValueError)):
        read_source(f"{base}/x", still)


def test_a_drip_is_cut(web: tuple[str, dict[str, Answer]]) -> None:
    """Give up at the deadline although each single read was in time."""
    base, answers = web
    answers["/x"] = (200, {}, document("k1"))
    times = iter([0.0, jwks.FETCH_TIMEOUT_S])
    with pytest.raises(TimeoutError):
        read_source(f"{base}/x", lambda: next(times))


@pytest.mark.parametrize("source", ["file:///etc/hostname", "ftp://x/y", "data://text/plain,x"])
def test_other_schemes_are_refused(source: str) -> None:
    """Open http, https and plain paths only."""
    with pytest.raises(ValueError, match="http, https or a file path"):
        read_source(source, still)


def test_a_large_file_and_a_missing_file_are_failures(tmp_path: Path) -> None:
    """Hold files to the same limit."""
    file = tmp_path / "jwks.json"
    with pytest.raises(OSError, match="jwks"):
        read_source(str(file), still)
    file.write_bytes(b" " * (jwks.MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(ValueError, match="more than"):
        read_source(str(file), still)


def test_https_is_never_left_for_http() -> None:
    """Refuse a redirect that would bring keys over an open wire."""
    request: Any = urllib.request.Request("https://idp.example/jwks")
    redirect: Callable[..., Any] = jwks._NoDowngrade().redirect_request
    with pytest.raises(OSError, match="leaves https"):
        redirect(request, None, 302, "", {}, "http://idp.example/jwks")
    assert redirect(request, None, 302, "", {}, "https://idp.example/2") is not None
