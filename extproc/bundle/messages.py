"""How Envoy's messages become files, and the one message type envoy-data-plane 2.2 lacks.

Knows: betterproto2, YAML and xDS file framing. Must not know: the configuration or any policy.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any as AnyValue
from typing import Final

import betterproto2
import yaml
from envoy_data_plane.envoy.config.core.v3 import (
    ConfigSource,
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    PathConfigSource,
    TypedExtensionConfig,
    WatchedDirectory,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.google.protobuf import Any
from envoy_data_plane.message_pool import default_message_pool
from pydantic.dataclasses import dataclass

OVERWRITE: Final = HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
_GROUPS: Final = "envoy.extensions.router.cluster_specifiers.priority_group.v3"


@dataclass(eq=False, repr=False)
class PriorityGroup(betterproto2.Message):
    """One attempt: its name and clusters (the weights are left to the override)."""

    name: str = betterproto2.field(1, betterproto2.TYPE_STRING)
    clusters: list[ClusterWeight] = betterproto2.field(2, betterproto2.TYPE_MESSAGE, repeated=True)


@dataclass(eq=False, repr=False)
class ClusterWeight(betterproto2.Message):
    """One cluster of a group; `weight` is a wrapped uint32 on the wire, 1 or more here."""

    cluster_name: str = betterproto2.field(1, betterproto2.TYPE_STRING)
    weight: int | None = betterproto2.field(
        2,
        betterproto2.TYPE_MESSAGE,
        unwrap=lambda: default_message_pool.url_to_type[
            "type.googleapis.com/google.protobuf.UInt32Value"
        ],
        optional=True,
    )


@dataclass(eq=False, repr=False)
class PriorityGroupClusterSpecifier(betterproto2.Message):
    """Envoy 1.40's planned failover: attempt n goes to group n."""

    priority_groups: list[PriorityGroup] = betterproto2.field(
        1, betterproto2.TYPE_MESSAGE, repeated=True
    )
    override_metadata_namespace: str = betterproto2.field(2, betterproto2.TYPE_STRING)


default_message_pool.register_message(
    _GROUPS, "PriorityGroupClusterSpecifier", PriorityGroupClusterSpecifier
)


def seconds(value: float) -> datetime.timedelta:
    """Return a protobuf duration."""
    return datetime.timedelta(seconds=value)


def extension(name: str, message: betterproto2.Message) -> TypedExtensionConfig:
    """Name a packed extension."""
    return TypedExtensionConfig(name=name, typed_config=Any.pack(message))


def http_filter(name: str, message: betterproto2.Message) -> HttpFilter:
    """Name a packed HTTP filter."""
    return HttpFilter(name=name, typed_config=Any.pack(message))


def header(key: str, value: str) -> HeaderValueOption:
    """Set a header, whatever it was."""
    return HeaderValueOption(header=HeaderValue(key=key, value=value), append_action=OVERWRITE)


def default_header(key: str, value: str) -> HeaderValueOption:
    """Set a header where there is none."""
    absent = HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT
    return HeaderValueOption(header=HeaderValue(key=key, value=value), append_action=absent)


def inline(text: str) -> DataSource:
    """Return text as a data source."""
    return DataSource(inline_string=text)


def from_file(path: str) -> ConfigSource:
    """Watch one file of the bundle.

    The directory is watched, not the file, because files are replaced by rename; the leading `./`
    is because Envoy's watcher refuses a bare name.
    """
    folder = path.rpartition("/")[0]
    return ConfigSource(
        path_config_source=PathConfigSource(
            path=f"./{path}",
            watched_directory=WatchedDirectory(path=f"./{folder}" if folder else "."),
        )
    )


def resources(messages: Sequence[betterproto2.Message]) -> str:
    """Render a discovery response as an xDS file."""
    return as_yaml({"resources": [as_dict(Any.pack(message)) for message in messages]})


def as_dict(message: betterproto2.Message) -> dict[str, AnyValue]:
    """Return the proto3 JSON form with Envoy's own field names."""
    return message.to_dict(casing=_as_named)  # type: ignore[arg-type]  # any callable does


def _as_named(name: str) -> str:
    """Keep the name: betterproto2's snake case makes `consecutive_5_xx` of `consecutive_5xx`."""
    return name


def as_yaml(document: Mapping[str, AnyValue]) -> str:
    """Render YAML that is the same text for the same document."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes code blocks as blocks and shares nothing by anchor."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
