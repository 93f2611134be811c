"""The bundle for several workers: who is asked about a call, and who is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.bundle.render import render
from extproc.checks import rejected_bundle
from extproc.record import beginning
from extproc.recording import encode
from extproc.schema import Config
from extproc.server import _new_ids
from tests.calls import forward, target

from .harness import configured

WORKERS = 3
PROVIDER = {"dialect": "openai", "endpoint": "http://127.0.0.1:9/v1"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Configure three workers."""
    redis = {"url": "redis://127.0.0.1"}
    return configured(
        tmp_path,
        {
            "server": {"workers": WORKERS},
            "state": {"store": "redis", "redis": redis},
            "providers": {"p": PROVIDER},
        },
    )


def resources(config: Config, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(render(config)[name])["resources"]
    return found


def sockets(cluster: dict[str, Any]) -> list[str]:
    (group,) = cluster["load_assignment"]["endpoints"]
    return [one["endpoint"]["address"]["pipe"]["path"] for one in group["lb_endpoints"]]


def test_any_decides_and_each_has_a_log(config: Config) -> None:
    """One cluster of them all, one for each worker's entries."""
    clusters = {one["name"]: one for one in resources(config, "cds.yaml")}
    assert sockets(clusters["llm-edge-processor"]) == [
        "processor-0.sock",
        "processor-1.sock",
        "processor-2.sock",
    ]
    for worker in range(WORKERS):
        assert sockets(clusters[f"llm.log-{worker}"]) == [f"log-{worker}.sock"]


def manager_of(config: Config) -> dict[str, Any]:
    (listener,) = resources(config, "lds.yaml")
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def cluster_of(log: dict[str, Any]) -> str:
    common = log["typed_config"]["common_config"]
    return str(common["grpc_service"]["envoy_grpc"]["cluster_name"])


def test_a_calls_entry_goes_to_who_planned_it(config: Config) -> None:
    """By how its record begins, which is its id's worker; of no record to nobody."""
    logs = manager_of(config)["access_log"]
    told = {}
    for log in logs:
        wanted = log["filter"]["metadata_filter"]
        assert wanted["match_if_key_not_found"] is False
        matcher = wanted["matcher"]
        assert (matcher["filter"], matcher["path"]) == ("llm.call", [{"key": "record"}])
        told[cluster_of(log)] = matcher["value"]["string_match"]["prefix"]
    assert told == {f"llm.log-{worker}": beginning(worker) for worker in range(WORKERS)}


def test_a_failed_attempt_goes_to_who_planned_it(config: Config) -> None:
    """By a header that the provider's filters set, whatever the caller sent."""
    router = manager_of(config)["http_filters"][-1]["typed_config"]
    told = {}
    for log in router["upstream_log"]:
        planned_by, failed = log["filter"]["and_filter"]["filters"]
        assert "or_filter" in failed
        header = planned_by["header_filter"]["header"]
        assert header["name"] == "x-upstream-worker"
        told[cluster_of(log)] = header["string_match"]["exact"]
    assert told == {f"llm.log-{worker}": beginning(worker) for worker in range(WORKERS)}
    for cluster in resources(config, "cds.yaml"):
        if not cluster["name"].startswith("p"):
            continue
        (options,) = cluster["typed_extension_protocol_options"].values()
        filters = {f["name"]: f["typed_config"] for f in options["http_filters"]}
        set_ = [
            one["append"]["header"]
            for one in filters["llm-edge.headers"]["mutations"]["request_mutations"]
            if "append" in one
        ]
        values = {header["key"]: header["value"] for header in set_}
        assert values["x-upstream-worker"] == "%DYNAMIC_METADATA(llm.call:record):4%"


@pytest.mark.parametrize("worker", [0, 1, 15, 16, 63])
def test_records_begin_as_the_filters_expect(worker: int) -> None:
    """Whatever is in them; no worker's are taken for another's."""
    planned = forward(target("p", "m"), id=_new_ids(worker)())
    text = encode(planned).decode()
    assert [n for n in range(64) if text.startswith(beginning(n))] == [worker]
    assert len(_new_ids(worker)()) == 32
    new_id = _new_ids(worker)
    assert len({new_id() for _ in range(2_000)}) == 2_000  # of several pools of chance


def test_one_worker_needs_none_of_it(tmp_path: Path) -> None:
    """Nothing of several is in the bundle of one."""
    text = "".join(render(configured(tmp_path, {"providers": {"p": PROVIDER}})).values())
    for word in ("log-0", "processor-0", "x-upstream-worker", "previous_hosts"):
        assert word not in text


@pytest.mark.whole
def test_envoy_accepts_it(config: Config) -> None:
    """All of it, as `llm-edge check` asks."""
    assert rejected_bundle(config, {}) == []
