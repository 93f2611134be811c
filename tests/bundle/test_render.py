"""The bundle as text: what is in it, what is never in it, and how it reaches the disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.bundle.edge import CALLERS, OWN, all_but
from extproc.bundle.messages import PriorityGroupClusterSpecifier
from extproc.bundle.render import render, write
from extproc.commands.bundle import bundle
from extproc.config import ConfigError, load

from .harness import configured

OPENAI = {
    "dialect": "openai",
    "endpoint": "https://api.openai.com/v1",
    "api_key": {"env": "OPENAI_API_KEY"},
}


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """The same configuration is the same bundle, so a reload of nothing reloads nothing."""
    config = configured(tmp_path, {"providers": {"openai": OPENAI}})
    assert render(config) == render(config)


def test_relative_paths_of_the_operator_are_made_absolute_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Envoy runs in the bundle's directory, the operator wrote paths from another."""
    monkeypatch.chdir(tmp_path)
    provider = {**OPENAI, "api_key": {"file": "keys/openai"}, "ca_file": "ca.pem"}
    config = configured(tmp_path, {"providers": {"openai": provider}})
    write(config, tmp_path / "out")
    assert str(tmp_path / "keys/openai") in (tmp_path / "out/secrets/openai.yaml").read_text()
    assert str(tmp_path / "ca.pem") in (tmp_path / "out/cds.yaml").read_text()


def test_secrets_are_private_and_stale_ones_go(tmp_path: Path) -> None:
    """A provider taken out of the configuration leaves nothing behind."""
    both = configured(tmp_path, {"providers": {"openai": OPENAI, "other": OPENAI}})
    write(both, tmp_path / "out")
    secrets = tmp_path / "out/secrets"
    of_openai = {"openai.yaml", "openai+anthropic.yaml"}
    assert {path.name for path in secrets.iterdir()} == {
        *of_openai,
        "other.yaml",
        "other+anthropic.yaml",
    }
    assert (secrets / "openai.yaml").stat().st_mode & 0o777 == 0o600
    write(configured(tmp_path, {"providers": {"openai": OPENAI}}), tmp_path / "out")
    assert {path.name for path in secrets.iterdir()} == of_openai


@given(st.text(alphabet="-acdegimoprstuvy_", max_size=16))
@example("")
@example("provider")
@example("providers")
@example("provide")
@example("strategy")
@example("timeout-ms")
@example("timeout")
@example("tier")
def test_the_edge_expression_matches_all_but_the_callers_headers(rest: str) -> None:
    """Of `x-llm-*`, exactly the three a caller may send are left alone."""
    matched = re.fullmatch(all_but(OWN, CALLERS), OWN + rest) is not None
    assert matched == (rest not in CALLERS)


def test_the_local_message_type_is_written_as_the_wire_has_it() -> None:
    """envoy-data-plane 2.2 lacks the priority groups, so ours must survive a round trip."""
    routes = yaml.safe_load(render(load(None, {}))["rds.yaml"])["resources"][0]
    action = routes["virtual_hosts"][0]["routes"][0]["route"]
    config = dict(action["inline_cluster_specifier_plugin"]["extension"]["typed_config"])
    assert config.pop("@type").endswith("priority_group.v3.PriorityGroupClusterSpecifier")
    parsed = PriorityGroupClusterSpecifier.from_dict(config)
    again = PriorityGroupClusterSpecifier.parse(bytes(parsed))
    assert again.priority_groups[0].clusters[0].weight == 1
    assert again.override_metadata_namespace == "llm"


def test_the_command_writes_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`llm-edge bundle` exits 0 with a bundle and 2 for a configuration nobody can render."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump({"providers": {"openai": OPENAI}}))
    bad.write_text(yaml.safe_dump({"providers": {"llm-edge-processor": OPENAI}}))
    run = CliRunner()
    done = run.invoke(bundle, ["--config", str(good), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/bootstrap.yaml").exists()
    done = run.invoke(bundle, ["--config", str(bad), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "providers.llm-edge-processor" in done.output


CLAUDE = {
    "dialect": "anthropic",
    "endpoint": "https://api.anthropic.com/v1",
    "api_key": {"env": "ANTHROPIC_API_KEY"},
}


def filters_of(cluster: dict) -> dict[str, dict]:
    """Return the filters of a cluster by name, in order."""
    (options,) = cluster["typed_extension_protocol_options"].values()
    return {one["name"]: one["typed_config"] for one in options["http_filters"]}


def test_each_provider_has_a_cluster_for_each_dialect_of_callers(tmp_path: Path) -> None:
    """Only the one for the other dialect translates; both have the provider's own credential."""
    config = configured(tmp_path, {"providers": {"openai": OPENAI, "claude": CLAUDE}})
    clusters = {one["name"]: one for one in yaml.safe_load(render(config)["cds.yaml"])["resources"]}
    assert set(clusters) - {"llm-edge-processor"} == {
        "openai",
        "openai+anthropic",
        "claude",
        "claude+openai",
    }
    for name, cluster in clusters.items():
        if name == "llm-edge-processor":
            continue
        filters = filters_of(cluster)
        assert ("llm-edge.translate" in filters) is ("+" in name)
        assert list(filters)[-2:] == ["llm-edge.credential", "envoy.filters.http.upstream_codec"]
        credential = filters["llm-edge.credential"]["credential"]["typed_config"]
        assert credential["credential"]["name"] == name
        header = "x-api-key" if name.startswith("claude") else "authorization"
        assert credential["header"] == header
        script = filters["llm-edge.address"]["default_source_code"]["inline_string"]
        paths = {"openai+anthropic": "/v1/chat/completions", "claude+openai": "/v1/messages"}
        assert f'local PATH = "{paths.get(name)}"' in script or "+" not in name


def test_only_a_provider_that_asks_for_it_has_its_streams_watched(tmp_path: Path) -> None:
    """In its own cluster, in the translation's place; without it the bundle is as it was."""
    plain = configured(tmp_path, {"providers": {"openai": OPENAI}})
    off = configured(tmp_path, {"providers": {"openai": {**OPENAI, "stall_events": False}}})
    assert render(off) == render(plain)
    both = {"openai": OPENAI, "watched": {**OPENAI, "stall_events": True}}
    config = configured(tmp_path, {"providers": both})
    found = {
        one["name"]: list(filters_of(one))
        for one in yaml.safe_load(render(config)["cds.yaml"])["resources"]
        if one["name"] != "llm-edge-processor"
    }
    assert [name for name, filters in found.items() if "llm-edge.watch" in filters] == ["watched"]
    assert found["watched"].index("llm-edge.watch") == found["watched+anthropic"].index(
        "llm-edge.translate"
    )


def test_no_name_of_a_provider_is_that_of_a_translating_cluster(tmp_path: Path) -> None:
    """The sign between the two names is legal in neither."""
    with pytest.raises(ConfigError):
        configured(tmp_path, {"providers": {"openai+anthropic": OPENAI}})
