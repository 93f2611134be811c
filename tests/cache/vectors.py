"""The published test vectors of cache keys, written by `make vectors`.

Knows: one group of cases for each rule of docs/cache-key.md. Every case lists bodies that are one
request; the cases of a group are different requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from extproc.cache import canonical, key
from extproc.domain import EndpointName

FILE = Path(__file__).parents[1] / "vectors" / "cache_key.json"
USER = '"messages":[{"role":"user","content":"Say hello."}]'
CALL: dict[str, Any] = {
    "secret": "correct horse battery staple",
    "scope": ["tenant", "acme"],
    "policy": "5f3a",
    "tier": "free",
    "endpoint": "chat",
    "model": "gpt-4o-mini",
    "query": "",
    "headers": {},
}


class Case(NamedTuple):
    """Bodies that are one request, and what is otherwise than in `CALL`."""

    bodies: Sequence[str]
    call: Mapping[str, Any] = {}


def with_user(*members: str) -> list[str]:
    """Return a chat body with each of the members, an empty one standing for none."""
    return [f"{{{USER},{member}}}" if member else f"{{{USER}}}" for member in members]


def on(endpoint: EndpointName) -> dict[str, Any]:
    """Return what the calls of another endpoint have otherwise."""
    return {"endpoint": endpoint}


ONE = with_user("")
GROUPS: Mapping[str, Sequence[Case]] = {
    "scope": [
        Case(ONE),
        Case(ONE, {"scope": ["tenant", "acme2"]}),
        Case(ONE, {"scope": ["tenant", ""]}),
        Case(ONE, {"scope": ["tenant", "acme,4:free"]}),
        Case(ONE, {"scope": ["key", "acme", "key_1"]}),
        Case(ONE, {"scope": ["key", "acmekey_1", ""]}),
        Case(ONE, {"scope": ["shared"]}),
        Case(ONE, {"scope": ["tenant", "e\u0301"]}),
        Case(ONE, {"scope": ["tenant", "\u00e9"]}),
    ],
    "secret": [Case(ONE), Case(ONE, {"secret": ""}), Case(ONE, {"secret": "s" * 100})],
    "policy and tier": [
        Case(ONE),
        Case(ONE, {"policy": "5f3b"}),
        Case(ONE, {"tier": "pro"}),
        Case(ONE, {"policy": "5f3", "tier": "afree"}),
    ],
    "endpoint and model": [
        Case(ONE),
        Case(ONE, on("messages")),
        Case(ONE, {"model": "gpt-4o"}),
        Case([f'{{{USER},"model":"anything"}}', f'{{"model":"at all",{USER}}}'], {"model": "m"}),
    ],
    "query and headers": [
        Case(ONE),
        Case(ONE, {"query": "beta=true"}),
        Case(ONE, {"headers": {"anthropic-version": "2023-06-01"}}),
        Case(ONE, {"headers": {"anthropic-beta": "2023-06-01"}}),
        Case(ONE, {"headers": {"x-llm-provider": "local"}}),
    ],
    "order and space": [
        Case([f'{{{USER},"seed":7}}', f' {{ "seed" : 7 ,\n {USER} }}\r\n']),
        Case([f'{{{USER},"seed":8}}']),
        Case(['{"messages":[{"role":"user","content":"Say  hello."}],"seed":7}']),
    ],
    "order of names": [Case(['{"\uffff":1,"\U00010000":2,"a":3,"B":4}', '{"B":4,"a":3,"\U00010000":2,"\uffff":1}'])],
    "order of lists": [Case(with_user('"stop":["a","b"]')), Case(with_user('"stop":["b","a"]'))],
    "numbers": [
        Case(with_user('"top_p":0.7', '"top_p":0.70', '"top_p":7e-1', '"top_p":7E-01', '"top_p":70.0e-2')),
        Case(with_user('"top_p":0.71')),
        Case(with_user('"top_p":-0.7')),
        Case(with_user('"seed":100', '"seed":1e2', '"seed":1E+2', '"seed":100.0', '"seed":10.0e1')),
        Case(with_user('"seed":"100"')),
        Case(with_user('"seed":0', '"seed":-0', '"seed":0.0', '"seed":-0.0', '"seed":0e5')),
    ],
    "large numbers": [
        Case(with_user('"seed":9007199254740993', '"seed":9007199254740993.0', '"seed":9007199254740.993e3')),
        Case(with_user('"seed":9007199254740992')),
        Case(with_user('"x":100000000000000000000000', '"x":1e23')),
        Case(with_user('"x":0.1')),
        Case(with_user('"x":0.1000000000000000055511151231257827')),
        Case(with_user('"x":1e-400')),
    ],
    "strings": [
        Case(['{"a":"\u00e9\U0001f600/\\n\\u0000\\u001f\u007f"}', r'{"\u0061":"\u00E9\ud83d\uDE00\/\u000A\u0000\u001F\u007f"}']),
        Case(['{"a":"e\u0301"}']),
        Case(['{"a":"\u00e9"}']),
        Case(['{"a":"\u212b"}']),
        Case(['{"a":"\u00c5"}']),
    ],
    "left out": [
        Case(with_user("", '"user":"u1"', '"stream":true,"stream_options":{"include_usage":true}', '"metadata":{"a":"b"},"safety_identifier":"x"', '"prompt_cache_key":"k","prompt_cache_retention":"24h"')),
        Case(with_user('"of_tomorrow":1')),
        Case(with_user('"of_tomorrow":null')),
        Case(with_user('"service_tier":"flex"')),
        Case(['{"input":"x","store":false,"user":"u1"}'], on("responses")),
        Case(['{"input":"x","store":false,"user":"u2"}'], on("responses")),
        Case(['{"max_tokens":5}', '{"max_tokens":5,"metadata":{"user_id":"u1"},"stream":true}'], on("messages")),
    ],
    "defaults": [
        Case(with_user("", '"n":1,"temperature":1.0,"top_p":1', '"presence_penalty":0,"frequency_penalty":0.0', '"seed":null,"stop":null,"max_tokens":null', '"response_format":{"type":"text"},"tool_choice":"none"', '"service_tier":"auto","store":false,"logprobs":false')),
        Case(with_user('"n":2')),
        Case(with_user('"n":true')),
        Case(with_user('"temperature":0')),
        Case(['{"prompt":"x"}', '{"prompt":"x","best_of":1,"echo":false}'], on("completions")),
        Case(['{"prompt":"x","max_tokens":16}'], on("completions")),
        Case(['{"input":"x"}', '{"input":"x","encoding_format":"float"}'], on("embeddings")),
        Case(['{"input":"x","encoding_format":"base64"}'], on("embeddings")),
        Case(['{"input":"x","store":false}', '{"input":"x","store":false,"truncation":"disabled","text":{"format":{"type":"text"}}}'], on("responses")),
        Case(['{"max_tokens":5}', '{"max_tokens":5,"temperature":1,"service_tier":"auto"}'], on("messages")),
        Case(['{"max_tokens":5,"top_p":1}'], on("messages")),
    ],
    "lists of one": [
        Case(with_user('"stop":"x"', '"stop":["x"]')),
        Case(['{"input":"x"}', '{"input":["x"]}'], on("embeddings")),
        Case(['{"input":[1,2]}', '{"input":[[1,2]]}'], on("embeddings")),
        Case(['{"input":["x","y"]}'], on("embeddings")),
        Case(['{"prompt":[5]}', '{"prompt":[[5]]}'], on("completions")),
    ],
    "content": [
        Case(['{"messages":[{"role":"user","content":"x"}]}']),
        Case(['{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}']),
        Case(['{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://a.example/1.png"}}]}]}']),
        Case(['{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://a.example/2.png"}}]}]}']),
    ],
    "tools": [
        Case(with_user('"tools":[{"type":"function","function":{"name":"f"}}]', '"tools":[{"function":{"name":"f"},"type":"function"}],"tool_choice":"auto","parallel_tool_calls":true')),
        Case(with_user('"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none"')),
        Case(with_user('"tools":[{"type":"function","function":{"name":"f","strict":false}}]')),
    ],
}  # fmt: skip


def answer(case: Case) -> dict[str, Any]:
    """Return a case with its canonical text and its key, which all its bodies have."""
    call = {**CALL, **case.call}
    forms = set()
    for body in case.bodies:
        values = canonical.read(body.encode())
        assert values is not None, body
        forms.add(canonical.form(call["endpoint"], values))
    assert len(forms) == 1, case
    form = forms.pop()
    assert form is not None, case
    headers = key.varying(call["headers"])
    components = {**call, "secret": call["secret"].encode(), "scope": tuple(call["scope"])}
    found = key.digest(**{**components, "headers": headers}, form=form)
    return {**call, "bodies": list(case.bodies), "canonical": form.decode(), "key": found.hex()}


def render() -> str:
    """Write the file as it is committed."""
    groups = [
        {"rule": rule, "cases": [answer(case) for case in cases]} for rule, cases in GROUPS.items()
    ]
    vectors = {"version": key.VERSION, "document": "docs/cache-key.md", "groups": groups}
    return json.dumps(vectors, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
