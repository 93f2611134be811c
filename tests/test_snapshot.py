"""The compiled configuration: prices and times exact, nothing to be changed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from extproc.config import DEFAULTS
from extproc.domain import Dialect, Model, Price, Target
from extproc.schema import Config, Prices
from extproc.snapshot import Snapshot, compile_snapshot, price_of


def compiled(now: float = 1_700_000_000.9, **layers: Any) -> Snapshot:
    """Compile the packaged defaults with the layers on top."""
    written = yaml.safe_load(DEFAULTS.read_text())
    return compile_snapshot(Config.model_validate({**written, **layers}), now)


LOCAL = {"local": {"dialect": "openai", "endpoint": "http://127.0.0.1:9101/v1", "max_retries": 4}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param({"input": 0.15, "output": 0.60}, (150_000, 600_000, 150_000), id="usual"),
        pytest.param(
            {"input": 0.15, "output": 0.6, "cached_input": 0.075},
            (150_000, 600_000, 75_000),
            id="a cached input of its own",
        ),
        pytest.param(
            {"input": "0.000001", "output": 0.000001, "cached_input": 0},
            (1, 1, 0),
            id="the smallest there is",
        ),
        pytest.param({"input": 0.1}, (100_000, 0, 100_000), id="embeddings have no output"),
        pytest.param(
            {"input": 75, "output": "150"}, (75_000_000, 150_000_000, 75_000_000), id="o1"
        ),
        pytest.param({"input": 0, "output": 0}, (0, 0, 0), id="for nothing"),
        pytest.param({"input": 1.1, "output": 2.2}, (1_100_000, 2_200_000, 1_100_000), id="floats"),
        pytest.param({"input": 1e-6}, (1, 0, 1), id="written with an exponent"),
    ],
)
def test_prices_are_exact(written: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert price_of(Prices.model_validate(written), "openai") == Price(*expected)


@given(st.integers(0, 10**12))
def test_every_price_of_six_places_is_exact(micro_usd: int) -> None:
    written = f"{micro_usd // 10**6}.{micro_usd % 10**6:06}"
    price = price_of(Prices.model_validate({"input": written}), "openai")
    assert price == Price(micro_usd, 0, micro_usd)


@given(st.integers(0, 10**9))
def test_every_price_yaml_reads_as_a_float_is_exact(micro_usd: int) -> None:
    price = price_of(Prices.model_validate({"input": micro_usd / 10**6}), "openai")
    assert price == Price(micro_usd, 0, micro_usd)


def test_no_price_is_not_a_price_of_zero() -> None:
    assert price_of(None, "anthropic") is None


@pytest.mark.parametrize(
    ("written", "dialect", "writes"),
    [
        pytest.param({"input": 3}, "anthropic", (3_750_000, 6_000_000), id="worked out of input"),
        pytest.param({"input": 0}, "anthropic", (0, 0), id="of a free input nothing"),
        pytest.param({"input": "0.000001"}, "anthropic", (2, 2), id="rounded up"),
        pytest.param(
            {"input": 3, "cache_write": 4}, "anthropic", (4_000_000, 6_000_000), id="one written"
        ),
        pytest.param(
            {"input": 3, "cache_write": 0, "cache_write_1h": 5},
            "anthropic",
            (0, 5_000_000),
            id="both written",
        ),
        pytest.param({"input": 3}, "openai", (None, None), id="others write for the input's price"),
        pytest.param(
            {"input": 3, "cache_write": 4}, "openai", (4_000_000, None), id="unless it is written"
        ),
    ],
)
def test_a_cache_is_written_at_its_own_price(
    written: dict[str, Any], dialect: Dialect, writes: tuple[int | None, int | None]
) -> None:
    """1.25 and 2 times the input's at Anthropic providers; long prompts have prices alike."""
    price = price_of(Prices.model_validate(written), dialect)
    assert price is not None
    assert (price.cache_write, price.cache_write_1h) == writes
    long = {"input": 1, "above": {"tokens": 9, **written}}
    tiered = price_of(Prices.model_validate(long), dialect)
    assert tiered is not None
    assert tiered.of(10) == price
    assert tiered.of(9).input == 1_000_000


def test_models_are_resolved_with_their_providers() -> None:
    targets = [
        {"provider": "local", "model": "llama", "weight": 3, "usd_per_million": {"input": 1}},
        {"provider": "local", "model": "llama-big"},
    ]
    snapshot = compiled(
        providers=LOCAL, models={"small": {"strategy": "weighted", "targets": targets}}
    )
    assert snapshot.models == {
        "small": Model(
            "small",
            "weighted",
            (
                Target("local", "llama", 3, Price(1_000_000, 0, 1_000_000), 4),
                Target("local", "llama-big", 1, None, 4),
            ),
        )
    }


def test_times_are_whole_milliseconds() -> None:
    timeouts = {
        "embedding": "1.5s",
        "completion": 0.25,
        "streaming": "2m",
        "connect": "1s",
        "first_token": "3s",
        "idle": "1m",
    }
    snapshot = compiled(timeouts=timeouts)
    assert snapshot.timeout_ms == {"embedding": 1500, "completion": 250, "streaming": 120_000}
    assert snapshot.started_at == 1_700_000_000


def test_the_defaults_compile() -> None:
    snapshot = compiled()
    assert snapshot.models == {}
    assert snapshot.max_request_bytes == 10 * 1024 * 1024
    assert snapshot.timeout_ms == {"embedding": 5000, "completion": 30_000, "streaming": 120_000}


def test_nothing_in_a_snapshot_can_be_changed() -> None:
    snapshot = compiled()
    with pytest.raises(TypeError):
        snapshot.models["x"] = None  # type: ignore[index]
    with pytest.raises(TypeError):
        snapshot.timeout_ms["streaming"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        snapshot.max_request_bytes = 1  # type: ignore[misc]
