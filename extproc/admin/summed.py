"""Add up the pages of several processes that count the same things.

Knows: Prometheus' text format as prometheus-client writes it. Must not know: who has which page,
where they come from. What was read is not changed by anything here, so threads may share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

# Gauges of which the sum says nothing; of all others it is the whole of what there is.
LARGEST: Final = frozenset(
    {"llm_edge_breaker_state", "process_max_fds", "process_start_time_seconds"}
)
GROWING: Final = frozenset({"counter", "histogram", "summary"})
MAX_KEPT: Final = 50_000  # samples of processes that are gone: 10 MB, five times the largest page


class Family(NamedTuple):
    """One metric: its HELP and TYPE lines, its type, and values by name and labels as written."""

    head: str
    kind: str
    samples: Mapping[str, float]


Page: TypeAlias = Mapping[str, Family]  # by the metric's name, in order
EMPTY: Final[Page] = {}


def read(text: str) -> Page:
    """Take a page apart. Raises ValueError for anything that is not a sample where one must be."""
    found: dict[str, Family] = {}
    samples: dict[str, float] = {}
    head = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            head = line
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            samples = {}
            found[name] = Family(f"{head}\n{line}\n", kind, samples)
        elif line:
            series, _, value = line.rpartition(" ")
            samples[series] = float(value)
    return found


def growing(page: Page) -> Page:
    """Return what of a page stays true when its process is gone: all that was ever counted."""
    return {name: family for name, family in page.items() if family.kind in GROWING}


def summed(pages: Sequence[Page]) -> Page:
    """Return the sum of pages; of some gauges the largest (LARGEST)."""
    total: dict[str, Family] = {}
    sums: dict[str, dict[str, float]] = {}
    for page in pages:
        for name, family in page.items():
            if name not in total:
                sums[name] = samples = dict(family.samples)
                total[name] = Family(family.head, family.kind, samples)
                continue
            samples = sums[name]
            for series, value in family.samples.items():
                so_far = samples.get(series)
                if so_far is None:
                    samples[series] = value
                elif name in LARGEST:
                    samples[series] = max(so_far, value)
                else:
                    samples[series] = so_far + value
    return total


def size(page: Page) -> int:
    """Count the samples of a page."""
    return sum(len(family.samples) for family in page.values())


def written(page: Page) -> bytes:
    """Write a page as `read` reads it."""
    lines: list[str] = []
    for family in page.values():
        lines.append(family.head)
        lines += [f"{series} {value!r}\n" for series, value in family.samples.items()]
    return "".join(lines).encode()
