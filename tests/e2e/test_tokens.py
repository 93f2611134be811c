"""JSON Web Tokens at the running gateway: whose tier a good one has, and that no bad one passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import jwt
import openai
import pytest

from tests.tokens import forged, signed, tampered

from .failing import DIALECTS, GOOD, PATHS
from .stack import Stack, start_stack, wait_for

ISSUER, AUDIENCE = "https://idp.example", "llm"
SECRET = b"canary-of-the-issuer-0123456789abcdef"
OTHER_SECRET = b"another-issuer's-secret-0123456789ab"
GOLD, SILVER, DEFAULT = 5, 3, 2  # requests a day
TELLS = {
    "openai": ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
    "anthropic": ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining"),
}
INCORRECT = "Incorrect API key provided."
SEEN = "SELECT * FROM outcomes WHERE tenant LIKE '%:seen'"
CREDENTIALS = ("authorization", "x-api-key", "api-key")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start a gateway that believes one issuer, which says the tier in a claim named `plan`."""
    directory = tmp_path_factory.mktemp("tokens")
    secret = directory / "issuer.secret"
    secret.write_bytes(SECRET)

    def change(config: dict[str, Any]) -> None:
        config["observability"] = {"log_level": "debug"}
        config["tiers"] = {
            "gold": {"requests_per_day": GOLD, "tokens_per_day": 1_000_000},
            "silver": {"requests_per_day": SILVER},
            "default": {"requests_per_day": DEFAULT},
        }
        issuer = {"issuer": ISSUER, "audience": AUDIENCE, "algorithms": ["HS256"]}
        claims = {"tier_claim": "plan", "tenant_claim": "org", "default_tier": "default"}
        config["auth"] = {"jwt": [{**issuer, **claims, "secret": {"file": str(secret)}}]}

    running = start_stack(directory, change=change)
    yield running
    running.stop()


def claims(sub: str, /, **changes: Any) -> dict[str, Any]:
    """Write the claims of a caller that is believed for an hour; `...` leaves a claim out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": sub, "iat": now, "exp": now + 3600}
    return {name: value for name, value in (good | changes).items() if value is not ...}


def good(sub: str, /, **changes: Any) -> str:
    """Sign a token as the issuer does."""
    return signed(claims(sub, **changes), SECRET)


def call(stack: Stack, dialect: str, token: str, header: str = "authorization") -> httpx.Response:
    """Ask the provider of the dialect, with a token where its callers put their keys."""
    said = [{"role": "user", "content": "hi"}]
    model = "gpt-4o-mini" if dialect == "openai" else "claude"
    body = {"model": model, "messages": said, "max_tokens": 20}
    credential = f"Bearer {token}" if header == "authorization" else token
    return httpx.post(f"{stack.base}{PATHS[dialect]}", json=body, headers={header: credential})


@pytest.mark.parametrize(
    ("plan", "limit"),
    [
        pytest.param("gold", GOLD, id="gold"),
        pytest.param("silver", SILVER, id="silver"),
        pytest.param(..., DEFAULT, id="none, so the default"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_token_has_the_limits_of_the_tier_it_claims(
    stack: Stack, dialect: str, plan: Any, limit: int
) -> None:
    """Exactly so many calls are served, in whichever header, whatever else the subject brings."""
    sub = f"alice-{dialect}-{plan}"
    limits, left = TELLS[dialect]
    for number in range(limit):
        # Each a token of its own: the limits are the subject's.
        token = good(sub, plan=plan, jti=number)
        answer = call(stack, dialect, token, CREDENTIALS[number % len(CREDENTIALS)])
        assert answer.status_code == 200, answer.text
        told = answer.headers[limits], answer.headers[left]
        assert told == (str(limit), str(limit - number - 1))
    refused = call(stack, dialect, good(sub, plan=plan))
    assert refused.status_code == 429
    assert f"{limit} requests per day" in refused.json()["error"]["message"]
    served = call(stack, dialect, good(f"bob-{dialect}-{plan}", plan=plan))
    assert (served.status_code, served.headers[left]) == (200, str(limit - 1))


def test_a_token_is_billed_to_the_tenant_it_names(stack: Stack) -> None:
    """Under its issuer's name, and to a digest in the place of its subject."""
    assert call(stack, "openai", good("carol@example.org", plan="gold", org="acme")).is_success
    query = "SELECT * FROM outcomes WHERE tenant LIKE '%:acme'"
    (row,) = wait_for("the bill", lambda: stack.rows(query))
    assert row["tenant"].startswith("idp.example-")
    assert row["key_id"].startswith("jwt:")
    assert "carol" not in str(row)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_a_token_may_not_have_is_forbidden(stack: Stack, dialect: str) -> None:
    """A tier that nobody configured would be no limits; a list of models holds."""
    elsewhere = call(stack, dialect, good("dave", plan="platinum"))
    narrow = call(stack, dialect, good("dave", plan="gold", models=["renamed"]))
    for refused in (elsewhere, narrow):
        assert refused.status_code == 403
        assert refused.json()["error"]["type"] == "permission_error"


def _claiming_more(token: str) -> str:
    """Put other claims before the signature of a good token."""
    header, _, signature = token.split(".")
    more = good("mallory", plan="gold").split(".")[1]
    return f"{header}.{more}.{signature}"


def _by_no_algorithm(name: str, *, sign: bool) -> str:
    header = {"alg": name, "typ": "JWT"}
    return forged(header, claims("mallory", plan="gold"), SECRET, None if sign else b"")


def _off(seconds: int) -> int:
    return int(time.time()) + seconds


# How a token is bad, and what makes it so; a reason is told only where the signature is good.
BAD: dict[str, tuple[Callable[[], str], str]] = {
    "expired long ago": (lambda: good("mallory", exp=_off(-3600)), "The token has expired."),
    "expired beyond all skew": (lambda: good("mallory", exp=_off(-31)), "The token has expired."),
    "without an end": (lambda: good("mallory", exp=...), "The token has no exp claim."),
    "not valid yet": (
        *(lambda: good("mallory", nbf=_off(3600)), "The token is not valid yet (nbf)."),
    ),
    "for another audience": (
        *(lambda: good("mallory", aud="billing"), "The token is for another audience."),
    ),
    "for other audiences": (
        *(lambda: good("mallory", aud=["billing", "llm2"]), "The token is for another audience."),
    ),
    "for no audience": (*(lambda: good("mallory", aud=...), "The token is for another audience."),),
    "without a subject": (lambda: good("mallory", sub=...), "The token has no sub claim."),
    "with a tier that is no name": (
        *(lambda: good("mallory", plan=["gold"]), "The token's plan claim is not usable."),
    ),
    "of another issuer": (lambda: good("mallory", iss="https://evil.example"), INCORRECT),
    "of another secret": (lambda: signed(claims("mallory"), OTHER_SECRET), INCORRECT),
    "with a bit of its signature changed": (lambda: tampered(good("mallory")), INCORRECT),
    "with claims of another": (lambda: _claiming_more(good("alice")), INCORRECT),
    "alg none": (lambda: _by_no_algorithm("none", sign=False), INCORRECT),
    "alg none, signed all the same": (lambda: _by_no_algorithm("none", sign=True), INCORRECT),
    "alg nOnE": (lambda: _by_no_algorithm("nOnE", sign=True), INCORRECT),
    "by an algorithm that is not the issuer's": (
        *(lambda: jwt.encode(claims("mallory"), SECRET * 2, algorithm="HS512"), INCORRECT),
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("make", "why"), BAD.values(), ids=BAD)
def test_a_bad_token_is_401_in_the_callers_dialect(
    stack: Stack, make: Callable[[], str], why: str, dialect: str
) -> None:
    """In every header, on every endpoint, and no provider hears of it."""
    token, sim = make(), GOOD[dialect]
    before = stack.sim_log(sim)
    refusals = [call(stack, dialect, token, header) for header in CREDENTIALS]
    version = {"anthropic-version": "2023-06-01"} if dialect == "anthropic" else {}
    headers = {"authorization": f"Bearer {token}"} | version
    refusals.append(httpx.get(f"{stack.base}/v1/models", headers=headers))
    for refused in refusals:
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/json"
        assert refused.headers["www-authenticate"] == "Bearer"
        assert [name for name in refused.headers if "ratelimit" in name] == []
        found = refused.json()
        assert why == found["error"]["message"]
        if dialect == "anthropic":
            assert (found["type"], found["error"]["type"]) == ("error", "authentication_error")
            assert found["request_id"] == refused.headers["request-id"]
        else:
            assert found["error"]["type"] == "authentication_error"
            assert found["error"]["code"] == "invalid_api_key"
    assert stack.sim_log(sim) == before


def test_a_proof_is_of_that_token_alone(stack: Stack) -> None:
    """What was believed once helps no other token that shares a part with it."""
    token = good("heidi", plan="gold")
    header, payload, signature = token.split(".")
    none = _by_no_algorithm("none", sign=True).split(".")[0]
    assert call(stack, "openai", token).status_code == 200
    for bad in (
        tampered(token),
        _claiming_more(token),
        f"{none}.{payload}.{signature}",
        f"{header}.{payload}.{payload}",
    ):
        assert call(stack, "openai", bad).status_code == 401
    assert call(stack, "openai", token).status_code == 200


def test_the_official_clients_take_a_token_for_a_key(stack: Stack) -> None:
    """A good one is served, plain and streamed; an expired one is their AuthenticationError."""
    said: Any = [{"role": "user", "content": "hi"}]
    token, late = good("erin", plan="gold"), good("erin", plan="gold", exp=_off(-3600))
    with openai.OpenAI(base_url=f"{stack.base}/v1", api_key=token, max_retries=0) as chat:
        create = chat.chat.completions.create
        assert create(model="gpt-4o-mini", messages=said).choices
        assert list(create(model="gpt-4o-mini", messages=said, stream=True))
        with pytest.raises(openai.AuthenticationError) as lost:
            chat.with_options(api_key=late).chat.completions.create(
                model="gpt-4o-mini", messages=said
            )
    assert lost.value.code == "invalid_api_key"
    for how in ("api_key", "auth_token"):  # x-api-key, and a bearer
        given: dict[str, Any] = {how: token}
        with anthropic.Anthropic(base_url=stack.base, max_retries=0, **given) as claude:
            message = claude.messages.create(model="claude", max_tokens=20, messages=said)
            assert message.usage.output_tokens
            with pytest.raises(anthropic.AuthenticationError) as refused:
                claude.with_options(**{how: late}).messages.create(
                    model="claude", max_tokens=20, messages=said
                )
        assert refused.value.response.headers["www-authenticate"] == "Bearer"


def test_what_the_command_signs_is_believed(stack: Stack) -> None:
    """`llm-edge token` prints a token of the tier and tenant that were asked for."""
    words = ("token", "--sub", "frank", "--tier", "silver", "--tenant", "ops")
    answer = call(stack, "openai", stack.command(*words).strip())
    assert (answer.status_code, answer.headers[TELLS["openai"][0]]) == (200, str(SILVER))


def test_tokens_are_seen_nowhere(stack: Stack) -> None:
    """Neither the issuer's secret nor any part of a token is in an output or a file."""
    tokens = [good("grace", plan="gold", org="seen"), *(make() for make, _ in BAD.values())]
    answers = [call(stack, dialect, token) for token in tokens for dialect in DIALECTS]
    wait_for("the bills", lambda: len(stack.rows(SEEN)) == 2)
    files = [*stack.directory.glob("*.log"), *stack.state.rglob("*")]
    places = {str(file): file.read_bytes() for file in files if file.is_file()}
    places["an answer"] = "".join(f"{one.headers}{one.text}" for one in answers).encode()
    places["the metrics"] = stack.admin_get("/metrics").content
    assert len(places[str(stack.processor.log)]) > 100
    secrets = {
        SECRET,
        *(part.encode() for token in tokens for part in token.split(".")[1:] if part),
    }
    assert [name for name, text in places.items() for one in secrets if one in text] == []
