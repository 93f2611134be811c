"""`llm-edge token`: tokens the gateway accepts, and no others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from extproc.commands.token import token
from extproc.errors import Denied
from extproc.policies.jwt import JwtIssuer, verify

SECRET = "0123456789abcdef0123456789abcdef"
LOCAL = JwtIssuer("local", "llm", frozenset({"HS256"}), "free", SECRET.encode())
OTHER = JwtIssuer("other", "llm", frozenset({"HS256"}), "free", SECRET.encode(), tier_claim="plan")
ISSUER = "{issuer: %s, audience: llm, algorithms: [HS256], secret: {env: %s}, default_tier: free%s}"
RSA = "{issuer: rsa, audience: llm, algorithms: [RS256], jwks_file: x, default_tier: free}"

Run = Callable[..., Result]


@pytest.fixture(name="run")
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with issuers and a secret in the environment."""
    monkeypatch.setenv("LOCAL_SECRET", SECRET)
    monkeypatch.setenv("SHORT_SECRET", "short")
    config = tmp_path / "llm-edge.yaml"

    def run(*words: str, issuers: str = ISSUER % ("local", "LOCAL_SECRET", "")) -> Result:
        config.write_text(f"auth: {{jwt: [{issuers}]}}\n")
        return CliRunner().invoke(token, ["--config", str(config), *words])

    return run


def test_the_gateway_accepts_it(run: Run) -> None:
    """Print the token alone to stdout, with the claims that were asked for."""
    made = run("--sub", "alice", "--tier", "pro", "--tenant", "acme", "--expires", "15m")
    assert made.exit_code == 0, made.output
    (signed,) = made.stdout.splitlines()
    now = time.time()
    proof = verify(signed, LOCAL, SECRET.encode(), now)
    assert proof.principal.tier == "pro"
    assert proof.principal.tenant == f"{LOCAL.name}:acme"
    assert f"tenant {proof.principal.tenant}" in made.stderr
    assert abs(proof.expires_at - now - 900) < 60
    with pytest.raises(Denied, match="expired"):
        verify(signed, LOCAL, SECRET.encode(), now + 1000)


def test_defaults(run: Run) -> None:
    """Leave tier and tenant to the issuer where they are not given; live an hour."""
    proof = verify(run("--sub", "alice").stdout.strip(), LOCAL, SECRET.encode(), time.time())
    assert proof.principal.tier == "free"
    assert proof.principal.tenant.startswith(f"{LOCAL.name}:sub~")
    assert abs(proof.expires_at - time.time() - 3600) < 60


def test_the_issuer_is_chosen_by_name(run: Run) -> None:
    """Sign for the issuer that was named, with its own claims."""
    local = ISSUER % ("local", "LOCAL_SECRET", "")
    other = ISSUER % ("other", "LOCAL_SECRET", ", tier_claim: plan")
    issuers = f"{RSA}, {local}, {other}"
    made = run("--sub", "a", "--issuer", "other", "--tier", "pro", issuers=issuers)
    assert verify(made.stdout.strip(), OTHER, SECRET.encode(), time.time()).principal.tier == "pro"
    for words in ([], ["--issuer", "rsa"], ["--issuer", "nobody"]):
        unclear = run("--sub", "a", *words, issuers=issuers)
        assert unclear.exit_code == 2
        assert "name one of local, other" in unclear.stderr


@pytest.mark.parametrize(
    ("words", "issuers", "says"),
    [
        pytest.param(["--tier", "gold"], None, "legal: enterprise, free, pro", id="unknown tier"),
        pytest.param(["--tenant", "a:b"], None, "tenant claim", id="a tenant nobody would accept"),
        pytest.param(["--sub", ""], None, "sub claim", id="an empty subject"),
        pytest.param(["--expires", "1"], None, "ms, s, m, h or d", id="no duration"),
        pytest.param(["--expires", "9" * 300 + "d"], None, "exp claim", id="beyond every date"),
        pytest.param([], RSA, "no issuer with a secret", id="nobody signs here"),
        pytest.param([], ISSUER % ("i", "NO_SECRET", ""), "$NO_SECRET", id="no secret"),
        pytest.param([], ISSUER % ("i", "SHORT_SECRET", ""), "32 bytes", id="a short secret"),
    ],
)
def test_bad_input_exits_2(run: Run, words: list[str], issuers: str | None, says: str) -> None:
    """Explain what is wrong, print no token and no secret."""
    failed = run("--sub", "alice", *words, **({} if issuers is None else {"issuers": issuers}))
    assert failed.exit_code == 2, failed.output
    assert says in failed.stderr
    assert failed.stdout == ""
    assert SECRET not in failed.output


def test_the_subject_is_required(run: Run) -> None:
    """Refuse to sign for nobody."""
    assert run().exit_code == 2
