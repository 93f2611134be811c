"""What a hostile client may try at the edge: the honest form's verdict, or an error."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from .stack import Stack, wait_for

CHAT = "/v1/chat/completions"
GOOD = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
MAX_BYTES = 10 * 1024 * 1024


def post(
    stack: Stack, content: bytes, key: str, path: str = CHAT, **headers: str
) -> httpx.Response:
    """Send bytes as a chat body."""
    return httpx.post(
        f"{stack.base}{path}",
        content=content,
        headers={"authorization": f"Bearer {key}", "content-type": "application/json", **headers},
        timeout=30,
    )


def raw(stack: Stack, request: bytes) -> tuple[int, bytes]:
    """Send bytes over a socket and return the status and the body."""
    with socket.create_connection(("127.0.0.1", stack.port), 10) as connection:
        connection.sendall(request)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


def message(target: str, key: str, *extra: str, host: str = "localhost") -> bytes:
    """Write an honest chat request to a target, with more header lines."""
    body = json.dumps(GOOD).encode()
    lines = [f"POST {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", *extra]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def is_openai_error(answer: httpx.Response) -> bool:
    """Say whether the body is an OpenAI error object."""
    error = answer.json()["error"]
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


def test_every_file_that_is_not_json_is_400(stack: Stack, key: str, shared_data: Path) -> None:
    """JSONTestSuite as bodies: n_ files are 400, none of any kind is 5xx or hangs."""
    files = sorted((shared_data / "json" / "JSONTestSuite" / "test_parsing").glob("*.json"))
    assert len(files) > 300
    with httpx.Client(base_url=stack.base, headers={"authorization": f"Bearer {key}"}) as client:
        for file in files:
            answer = client.post(CHAT, content=file.read_bytes())
            assert answer.status_code < 500, file.name
            if file.name.startswith("n_"):
                assert answer.status_code == 400, file.name
                assert is_openai_error(answer), file.name
    assert stack.sim_log("a") == []


WRAPPED = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": %s}]}'


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b"[" * 100_000, 400, id="100,000 deep, unclosed"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, 400, id="100,000 deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, id="100,000 objects deep"),
        pytest.param(
            WRAPPED.replace(b"}]}", b'}], "x": %s}') % (b'"a"', b"9" * 5000), 400, id="5,000 digits"
        ),
        pytest.param(WRAPPED % rb'"\ud800"', 400, id="a lone surrogate"),
        pytest.param(WRAPPED % b'"\xff\xfe"', 400, id="invalid UTF-8"),
        pytest.param(WRAPPED % b'"\x00"', 400, id="NUL in a string"),
        pytest.param(b"\x00" + WRAPPED % b'"a"', 400, id="NUL in front"),
        pytest.param(
            b'{"model": "a", "model": "gpt-4o-mini", "messages": []}', 400, id="duplicate key"
        ),
        pytest.param(b" " * (MAX_BYTES + 1), 413, id="one byte over the limit"),
        pytest.param(
            WRAPPED % (b'"' + b"a" * (MAX_BYTES - len(WRAPPED)) + b'"'), 200, id="at the limit"
        ),
        pytest.param(b"", 400, id="empty"),
        pytest.param(b'{"model": 5, "messages": []}', 400, id="wrong type"),
    ],
)
def test_bodies_nobody_should_send(stack: Stack, key: str, content: bytes, status: int) -> None:
    """Each has its clear error and reaches no provider."""
    answer = post(stack, content, key)
    assert answer.status_code == status, answer.text[:300]
    if status != 200:
        assert is_openai_error(answer)
        assert stack.sim_log("a") == []


def test_a_body_over_the_limit_without_a_length_is_413(stack: Stack, key: str) -> None:
    """Chunked bodies are counted as they come."""

    def pieces():
        for _ in range(MAX_BYTES // 65536 + 20):
            yield b" " * 65536

    try:
        answer = httpx.post(
            f"{stack.base}{CHAT}",
            content=pieces(),
            headers={"authorization": f"Bearer {key}"},
            timeout=30,
        )
    except httpx.WriteError:
        return  # refused while still writing: the connection is closed under the writer
    assert answer.status_code == 413
    assert is_openai_error(answer)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param([], 401, id="no credential"),
        pytest.param(
            ["Authorization: Bearer {key}", "Authorization: Bearer {key}x"], 401, id="two bearers"
        ),
        pytest.param(
            ["Authorization: Bearer {key}", "x-api-key: other"], 401, id="bearer and other key"
        ),
        pytest.param(
            ["Authorization: Bearer {key}", "api-key: other"], 401, id="bearer and api-key"
        ),
        pytest.param(["x-api-key: {key}", "x-api-key: sk_{pad}"], 401, id="two x-api-key"),
        pytest.param(["Authorization: Bearer {key}", "x-api-key: {key}"], 200, id="the same twice"),
        pytest.param(["x-api-key: {key}"], 200, id="x-api-key"),
        pytest.param(["api-key: {key}"], 200, id="api-key"),
        pytest.param(["Authorization: Basic {key}"], 401, id="basic"),
        pytest.param(["Authorization: bearer {key}"], 200, id="scheme in lower case"),
        pytest.param(["Authorization: Bearer"], 401, id="empty bearer"),
    ],
)
def test_credentials(stack: Stack, key: str, headers: list[str], status: int) -> None:
    """Conflicting credentials are nobody's."""
    lines = [line.format(key=key, pad="x" * 43) for line in headers]
    assert raw(stack, message(CHAT, "", *lines))[0] == status


@pytest.mark.parametrize(
    "spoofed",
    [
        "x-envoy-upstream-rq-timeout-ms: 1",
        "x-envoy-max-retries: 9",
        "x-envoy-retry-on: 4xx",
        "x-envoy-original-path: /v1/models",
        "x-envoy-internal: true",
        "x-envoy-force-trace: 1",
        "x-envoy-decorator-operation: x",
        "x-envoy-attempt-count: 7",
        "x-envoy-expected-rq-timeout-ms: 1",
        "x-envoy-hedge-on-per-try-timeout: true",
        "x-envoy-upstream-alt-stat-name: x",
        "x-envoy-peer-metadata: x",
        "x-llm-tenant: other",
        "x-llm-cluster: b",
        "x-llm-model: other",
        "x-llm-suffix: /models",
        "x-llm-anything: 1",
    ],
)
def test_spoofed_control_headers_mean_nothing(stack: Stack, key: str, spoofed: str) -> None:
    """The call is answered as without them, and the provider never sees them."""
    status, _ = raw(stack, message(CHAT, key, spoofed))
    assert status == 200
    seen = stack.sim_log("a")[-1]["headers"]
    name, _, value = spoofed.partition(": ")
    assert seen.get(name) != value
    assert not any(header.startswith("x-llm-") for header in seen)


def test_the_provider_sees_no_caller_credentials(stack: Stack, key: str) -> None:
    """Keys of callers stay at the gateway, and so do internal headers."""
    raw(stack, message(CHAT, key, "Cookie: a=b", f"x-api-key: {key}", "Accept-Encoding: gzip"))
    seen = stack.sim_log("a")[-1]["headers"]
    assert key not in json.dumps(seen)
    assert not {"cookie", "x-api-key", "api-key", "accept-encoding"} & set(seen)
    assert not any(name.startswith("x-envoy-") for name in seen)


@pytest.mark.parametrize(
    ("target", "legal"),
    [
        pytest.param("//v1/chat/completions", {200, 307, 400, 404}, id="double slash"),
        pytest.param("/v1//chat/completions", {200, 307, 400, 404}, id="double slash inside"),
        pytest.param("/v1/../v1/chat/completions", {200, 307, 400, 404}, id="dot dot"),
        pytest.param("/v1/./chat/completions", {200, 307, 400, 404}, id="dot"),
        pytest.param("/v1/%2e%2e/v1/chat/completions", {200, 307, 400, 404}, id="encoded dots"),
        pytest.param("/v1/chat%2fcompletions", {307, 400, 404}, id="encoded slash"),
        pytest.param("/v1/chat%5ccompletions", {307, 400, 404}, id="encoded backslash"),
        pytest.param("/v1/chat/completions/", {404}, id="trailing slash"),
        pytest.param("/V1/chat/completions", {404}, id="upper case"),
        pytest.param("/v1/../admin/keys", {404}, id="escape"),
        pytest.param("/v1/chat/completions%00", {400, 404}, id="encoded NUL"),
        pytest.param("http://evil/v1/chat/completions", {200, 400, 404}, id="absolute form"),
        pytest.param("/v1/chat/completions?x=1", {200}, id="query"),
    ],
)
@pytest.mark.parametrize("honest", [True, False], ids=["with a key", "without"])
def test_path_tricks(stack: Stack, key: str, target: str, legal: set[int], honest: bool) -> None:
    """A trick is answered like the honest form or refused; without a key it never passes."""
    status, body = raw(stack, message(target, key if honest else ""))
    if honest:
        assert status in legal, body
    else:
        assert status in (legal - {200}) | {401}, body
        assert stack.sim_log("a") == []
    if status == 404:
        assert json.loads(body)["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1:9090", "localhost@evil", "api.openai.com", "x" * 300]
)
def test_host_tricks(stack: Stack, key: str, host: str) -> None:
    """The Host header chooses nothing: the provider's own name goes upstream."""
    status, _ = raw(stack, message(CHAT, key, host=host))
    assert status in {200, 400}
    for seen in stack.sim_log("a"):
        assert seen["headers"]["host"] == stack.sims["a"].removeprefix("http://")


def test_underscores_in_header_names_are_refused(stack: Stack, key: str) -> None:
    """Because `x_llm_provider` and `x-llm-provider` are one header to some servers behind."""
    assert raw(stack, message(CHAT, key, "x_llm_provider: b"))[0] == 400


def test_unknown_paths_answer_json_in_the_callers_dialect(stack: Stack) -> None:
    """404 in the shape the client of that path expects."""
    answer = httpx.get(f"{stack.base}/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/json"
    other = httpx.post(f"{stack.base}/v1/messages/batches")
    assert other.status_code == 404
    assert other.json()["type"] == "error"
    assert httpx.get(f"{stack.base}/healthz").status_code == 200


def test_request_ids_are_kept_when_valid_and_always_answered(stack: Stack, key: str) -> None:
    """A valid id is echoed and logged; an invalid one is replaced."""
    content = json.dumps(GOOD).encode()
    query = "SELECT * FROM outcomes WHERE request_id = ?"
    # The last two are as long as a UUID, where Envoy would write its tracing's decision.
    for given in ("my-id.1", "0198f0a2-7b3c-7d4e-8f5a-6b7c8d9e0f1a", "x" * 36):
        answer = post(stack, content, key, **{"x-request-id": given})
        assert answer.headers["x-request-id"] == given
        wait_for("the bill", lambda given=given: stack.rows(query, given))
        assert stack.sim_log("a")[-1]["request_id"] == given
    made = post(stack, content, key, **{"x-request-id": "bad id<script>"}).headers["x-request-id"]
    assert made
    assert made != "bad id<script>"
    assert httpx.post(f"{stack.base}{CHAT}").headers["x-request-id"]


def test_secrets_and_prompts_are_in_no_log(stack: Stack, key: str) -> None:
    """Canaries in the key and the prompt appear in no log line and no metric."""
    canary = "canary-7f3a9-prompt"
    content = json.dumps({**GOOD, "messages": [{"role": "user", "content": canary}]}).encode()
    assert post(stack, content, key).status_code == 200
    assert post(stack, content[:-1], key).status_code == 400
    assert canary not in post(stack, content.replace(b'"user"', b'"canary-role"'), key).text
    everything = stack.logs() + stack.admin_get("/metrics").text
    assert canary not in everything
    assert key not in everything
