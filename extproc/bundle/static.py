"""The whole bundle as one static bootstrap, which is how Envoy can be asked about all of it.

Knows: the names of the bundle's files. Must not know: what is in them. Because
`envoy --mode validate` reads the bootstrap alone and takes no notice of listeners, routes and
clusters that come from other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def static_bootstrap(files: Mapping[str, str]) -> str:
    """Return a bootstrap that holds listeners, routes and clusters; `files` is `render`'s."""
    bootstrap: dict[str, Any] = yaml.safe_load(files["bootstrap.yaml"])
    bootstrap.pop("dynamic_resources")
    listeners = _resources(files["lds.yaml"])
    routes = _resources(files["rds.yaml"])
    for manager in _managers(listeners):
        wanted = manager.pop("rds")["route_config_name"]
        route = next(route for route in routes if route["name"] == wanted)
        # Because a request without a plan goes, on purpose, to a cluster that does not exist.
        manager["route_config"] = {**route, "validate_clusters": False}
    clusters = _resources(files["cds.yaml"])
    bootstrap["static_resources"] = {"listeners": listeners, "clusters": clusters}
    return yaml.safe_dump(bootstrap, sort_keys=False)


def _resources(text: str) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in resource.items() if key != "@type"}
        for resource in yaml.safe_load(text)["resources"]
    ]


def _managers(listeners: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        filter_["typed_config"]
        for listener in listeners
        for chain in listener["filter_chains"]
        for filter_ in chain["filters"]
        if "rds" in filter_["typed_config"]
    ]
