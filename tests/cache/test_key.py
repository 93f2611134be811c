"""Two calls share a key only if everything that can change the answer, or who may have it, is equal."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.cache.key import DIGEST_BYTES, VARY, digest, scope_of, varying
from extproc.domain import Principal
from tests.cache import oracle

# Any text at all: delimiters of every scheme, digits that look like lengths, lone surrogates.
texts = st.text(st.characters(exclude_categories=()), max_size=12) | st.text(
    "0123456789:,;|/=&#-\x00\n\u2028tenantkeyshared", max_size=12
)
principals = st.builds(Principal, texts, texts, texts)
CALL: dict[str, Any] = {
    "secret": b"s" * 32,
    "scope": ("tenant", "acme"),
    "policy": "v1",
    "tier": "free",
    "endpoint": "chat",
    "model": "gpt-4o-mini",
    "query": "",
    "headers": varying({}),
    "form": b'{"messages":[]}',
}
arguments = st.fixed_dictionaries(
    {
        "secret": st.binary(max_size=100),
        "scope": principals.map(lambda who: scope_of("key", who)),
        "policy": texts,
        "tier": texts,
        "endpoint": st.sampled_from(["chat", "messages"]),
        "model": texts,
        "query": texts,
        "headers": st.dictionaries(st.sampled_from(VARY), texts).map(varying),
        "form": st.binary(max_size=40),
    }
)


# The rows that matter most: tenants.


@given(one=principals, other=principals, rest=arguments)
@example(one=Principal("a", "b", ""), other=Principal("a:", "b", ""), rest=CALL)
@example(one=Principal("a,1:b", "", ""), other=Principal("a", "b", ""), rest=CALL)
@example(one=Principal("", "", ""), other=Principal("\x00", "", ""), rest=CALL)
@example(one=Principal("\ud83d\ude00", "", ""), other=Principal("\U0001f600", "", ""), rest=CALL)
@example(one=Principal("\ud800", "", ""), other=Principal("\ufffd", "", ""), rest=CALL)
@example(one=Principal("\ud800", "", ""), other=Principal("\ud801", "", ""), rest=CALL)
@example(one=Principal("e\u0301", "", ""), other=Principal("\u00e9", "", ""), rest=CALL)
def test_two_tenants_never_share_a_key(
    one: Principal, other: Principal, rest: dict[str, Any]
) -> None:
    same_tenant = one.tenant == other.tenant
    for kind in ("tenant", "key"):
        keys = {digest(**{**rest, "scope": scope_of(kind, who)}) for who in (one, other)}
        same_scope = same_tenant if kind == "tenant" else same_tenant and one.key_id == other.key_id
        assert len(keys) == (1 if same_scope else 2)


@given(who=principals)
def test_a_kind_of_scope_is_never_another_kind(who: Principal) -> None:
    assert (
        len(
            {
                digest(**{**CALL, "scope": scope_of(kind, who)})
                for kind in ("tenant", "key", "shared")
            }
        )
        == 3
    )


@given(who=principals, other=principals)
def test_where_it_is_configured_everyone_shares(who: Principal, other: Principal) -> None:
    assert scope_of("shared", who) == scope_of("shared", other)


@given(one=arguments, other=arguments)
def test_two_calls_share_a_key_only_if_every_argument_is_equal(one: Any, other: Any) -> None:
    assert (digest(**one) == digest(**other)) == (one == other)


@given(base=arguments, other=arguments)
def test_one_argument_that_differs_is_enough(base: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in other.items():
        changed = {**base, name: value}
        assert (digest(**changed) == digest(**base)) == (value == base[name]), name


@given(text=texts, data=st.data())
def test_no_text_can_be_moved_from_one_argument_to_the_next(text: str, data: st.DataObject) -> None:
    names = ["policy", "tier", "model", "query"]
    splits = [data.draw(st.integers(0, len(text))) for _ in range(2)]
    pairs = list(itertools.pairwise(names))
    first, second = data.draw(st.sampled_from(pairs))
    keys = {digest(**{**CALL, first: text[:at], second: text[at:]}) for at in splits}
    assert len(keys) == len(set(splits))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("scope", ("tenant", "other"), id="another tenant"),
        pytest.param("policy", "v2", id="a policy that changed"),
        pytest.param("tier", "pro", id="another tier"),
        pytest.param("endpoint", "responses", id="another endpoint"),
        pytest.param("model", "gpt-4o", id="another model"),
        pytest.param("query", "beta=true", id="a query"),
        pytest.param("form", b'{"messages":[{}]}', id="another request"),
        pytest.param("secret", b"t" * 32, id="another secret"),
        pytest.param("secret", b"", id="no secret"),
        *[pytest.param("headers", varying({name: "x"}), id=name) for name in VARY],
    ],
)
def test_a_change_of_any_component_is_another_key(name: str, value: Any) -> None:
    assert digest(**{**CALL, name: value}) != digest(**CALL)


def test_nothing_can_be_left_out() -> None:
    parameters = inspect.signature(digest).parameters.values()
    assert all(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters)
    for name in CALL:
        with pytest.raises(TypeError, match=name):
            digest(**{key: value for key, value in CALL.items() if key != name})


@given(call=arguments)
def test_the_key_is_what_the_document_says(call: dict[str, Any]) -> None:
    found = digest(**call)
    assert len(found) == DIGEST_BYTES
    headers = dict(zip(VARY, call["headers"], strict=True))
    rest = [
        call[name] for name in ("secret", "scope", "policy", "tier", "endpoint", "model", "query")
    ]
    assert found == oracle.digest(*rest, headers, call["form"])


def test_only_headers_that_change_answers_are_read() -> None:
    assert varying({"authorization": "Bearer x", "x-request-id": "1"}) == varying({})
    assert varying({"anthropic-beta": "a"}) != varying({"openai-beta": "a"})
