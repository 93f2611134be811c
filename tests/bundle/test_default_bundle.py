"""The committed bundle is what the defaults render to, and Envoy accepts every kind of bundle."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from extproc.bundle.render import render, write
from extproc.checks import envoy_binary, problems, rejected_bundle
from extproc.config import load
from extproc.schema import Config

ROOT = Path(__file__).resolve().parents[2]


def configured(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "llm-edge.yaml"
    file.write_text(text)
    return load([file], {})


def certificate(directory: Path) -> None:
    """Write a self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    directory.joinpath("tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    directory.joinpath("tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def test_the_committed_bundle_is_the_rendered_one() -> None:
    """`make bundle` has been run since the last change."""
    rendered = render(load([], {}))
    committed = {
        str(path.relative_to(ROOT / "envoy")): path.read_text()
        for path in (ROOT / "envoy").rglob("*.yaml")
    }
    assert committed == rendered


def test_the_committed_bundle_starts_envoy(tmp_path: Path) -> None:
    """`envoy --mode validate` accepts the bootstrap as it is committed."""
    write(load([], {}), tmp_path)
    command = [str(envoy_binary()), "--mode", "validate", "-c", "bootstrap.yaml", "-l", "error"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FULL = """
server: {{host: 0.0.0.0, port: 8443, tls: {{cert_file: {dir}/tls.crt, key_file: {dir}/tls.key}},
  cors: {{allow_origins: ["https://app.example"]}}, processor_address: "processor.svc:50051"}}
providers:
  openai: {{dialect: openai, endpoint: "https://api.openai.com/v1", api_key: {{env: TEST_KEY}}}}
  file: {{dialect: openai, endpoint: "https://10.0.0.1:8443/base/v1", api_key: {{file: {dir}/key}}}}
  plain: {{dialect: openai, endpoint: "http://ollama.local:11434/v1"}}
models: {{m: {{targets: [{{provider: openai, model: gpt-4o}}, {{provider: file, model: x/y}},
  {{provider: plain, model: "llama3:8b"}}]}}}}
"""


@pytest.mark.parametrize("kind", ["default", "full"])
def test_envoy_accepts_all_of_the_bundle(tmp_path: Path, kind: str) -> None:
    """Listeners, routes, clusters, filters and secrets, as one static configuration."""
    certificate(tmp_path)
    (tmp_path / "key").write_text("sk-upstream")
    text = "{}" if kind == "default" else FULL.format(dir=tmp_path)
    assert problems(configured(tmp_path, text), {"TEST_KEY": "sk-upstream"}) == []


def test_a_missing_secret_is_named_before_envoy_is_asked(tmp_path: Path) -> None:
    """`check` says which variable or file is absent."""
    certificate(tmp_path)
    found = problems(configured(tmp_path, FULL.format(dir=tmp_path)), {})
    assert found == [
        "providers.openai.api_key: $TEST_KEY is not set",
        f"providers.file.api_key: cannot read {tmp_path}/key",
    ]


def test_validation_reaches_into_the_listener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that Envoy would refuse at run time is refused by `check`."""
    config = configured(tmp_path, "{}")
    files = render(config)
    broken = files["lds.yaml"].replace("merge_slashes: true", "merge_slashes: 7")
    assert broken != files["lds.yaml"]
    monkeypatch.setattr("extproc.checks.render", lambda _: {**files, "lds.yaml": broken})
    assert rejected_bundle(config, {})[0] == "envoy rejects the bundle:"


def test_no_secret_and_no_tcp_admin_in_any_file(tmp_path: Path) -> None:
    """Keys are references, and Envoy's admin is a Unix socket."""
    certificate(tmp_path)
    (tmp_path / "key").write_text("sk-upstream")
    rendered = render(configured(tmp_path, FULL.format(dir=tmp_path)))
    assert not any("sk-upstream" in text for text in rendered.values())
    admin = yaml.safe_load(rendered["bootstrap.yaml"])["admin"]
    assert "pipe" in admin["address"]
