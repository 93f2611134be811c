"""SDS files: where Envoy finds credentials and the server certificate, never what they are.

Knows: references to secrets. Must not know: their values; nothing here reads one.
"""

from __future__ import annotations

from pathlib import Path

from envoy_data_plane.envoy.config.core.v3 import DataSource, WatchedDirectory
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    GenericSecret,
    Secret,
    TlsCertificate,
)

from extproc.bundle.places import TLS_SECRET, operator_path, secret_path
from extproc.schema import Tls
from extproc.schema_fields import SecretRef


def credential(cluster: str, reference: SecretRef, base: Path) -> Secret:
    """Describe a provider's API key. Envoy reads the variable or file itself."""
    if reference.env is not None:
        source = DataSource(environment_variable=reference.env)
    else:
        path = secret_path(reference, base)
        source = DataSource(filename=path, watched_directory=_directory(path))
    return Secret(name=cluster, generic_secret=GenericSecret(secret=source))


def certificate(tls: Tls, base: Path) -> Secret:
    """Describe the server certificate; renewed files are taken up without a restart."""
    chain = operator_path(tls.cert_file, base)
    return Secret(
        name=TLS_SECRET,
        tls_certificate=TlsCertificate(
            certificate_chain=DataSource(filename=chain),
            private_key=DataSource(filename=operator_path(tls.key_file, base)),
            watched_directory=_directory(chain),
        ),
    )


def _directory(path: str) -> WatchedDirectory:
    return WatchedDirectory(path=str(Path(path).parent))
