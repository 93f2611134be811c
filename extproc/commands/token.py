"""`llm-edge token`: sign a token of an HS256 issuer, for local use.

Knows: the configuration and the terminal. Must not know: requests or a running server. It prints
only what the gateway would accept, because it verifies what it signed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import click
import jwt

from extproc.commands.options import BadInput, config_option, duration, load_config
from extproc.errors import Denied
from extproc.issuers import compile_issuer
from extproc.policies.jwt import verify
from extproc.schema import JwtIssuerConfig


@click.command()
@config_option
@click.option("--issuer", help="Which HS256 issuer signs; needed where there are several.")
@click.option("--sub", required=True, help="The subject: who the token is for.")
@click.option("--tier", help="A tier of the configuration. Default: the issuer's default.")
@click.option("--tenant", help="The tenant. Default: a tenant of the subject's own.")
@click.option("--expires", type=duration, default="1h", show_default=True, help="Lifetime.")
def token(
    *,
    config_paths: tuple[Path, ...],
    issuer: str | None,
    sub: str,
    tier: str | None,
    tenant: str | None,
    expires: float,
) -> None:
    """Print a JSON Web Token signed with the secret of an HS256 issuer."""
    config = load_config(config_paths)
    if tier is not None and tier not in config.tiers:
        raise BadInput(f"--tier: no tier {tier!r}; legal: {', '.join(sorted(config.tiers))}")
    try:
        signer = compile_issuer(_choose(config.auth.jwt, issuer), os.environ)
    except ValueError as error:
        raise BadInput(str(error)) from None
    now = time.time()
    claims: dict[str, object] = {"iss": signer.issuer, "aud": signer.audience, "iat": int(now)}
    claims |= {} if tier is None else {signer.tier_claim: tier}
    claims |= {} if tenant is None else {signer.tenant_claim: tenant}
    claims |= {"sub": sub, "exp": int(now + expires)}
    secret = signer.secret or b""  # `_choose` returns issuers with a secret only
    signed = jwt.encode(claims, secret, algorithm="HS256")
    try:
        proof = verify(signed, signer, secret, now)
    except Denied as denied:
        raise BadInput(denied.message) from None
    caller = proof.principal
    click.echo(f"{caller.key_id}  tenant {caller.tenant}  tier {caller.tier}", err=True)
    click.echo(signed)


def _choose(issuers: Sequence[JwtIssuerConfig], name: str | None) -> JwtIssuerConfig:
    signers = {issuer.issuer: issuer for issuer in issuers if issuer.secret is not None}
    if not signers:
        raise BadInput("auth.jwt: no issuer with a secret (HS256); only those can sign here")
    if name is None and len(signers) == 1:
        return next(iter(signers.values()))
    if name not in signers:
        raise BadInput(f"--issuer: name one of {', '.join(sorted(signers))}")
    return signers[name]
