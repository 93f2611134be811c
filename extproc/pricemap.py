"""Prices, context windows and abilities from the community's price map, as configuration.

Knows: the format of LiteLLM's `model_prices_and_context_window.json` and our schema. Must not know:
where the file comes from or who reads the result. Numbers are read as decimals, so a price is what
was written.
Source: https://docs.litellm.ai/docs/provider_registration/add_model_pricing
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from extproc.schema import Config, TargetConfig

SAMPLE: Final = "sample_spec"  # the map's own description of itself
MILLION: Final = Decimal(1_000_000)
DECIMALS: Final = Decimal("0.000001")
_ABILITIES: Final = {
    "supports_function_calling": "tools",
    "supports_vision": "images",
    "supports_response_schema": "json_schema",
}
_ABOVE: Final = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")
_PRICES: Final = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}


class NotAPriceMap(ValueError):
    """A file that is not in the format; the text says where."""


def read(text: str) -> dict[str, dict[str, Any]]:
    """Return what the map says of each model, in the members of a target of ours.

    `usd_per_million` with `above` where long prompts cost more, `context_window`, `endpoints` for
    embedding models, and `false` for an ability that is denied; what it does not say is absent.
    Raises NotAPriceMap.
    """
    try:
        document = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    except (ValueError, RecursionError) as error:
        raise NotAPriceMap(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise NotAPriceMap("the top level must be an object of models")
    return {name: _entry(name, one) for name, one in document.items() if name != SAMPLE}


def fragment(
    config: Config, known: Mapping[str, Mapping[str, Any]], *, overwrite: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Return the models of a configuration with what the map adds, and the targets it lacks.

    A target is looked up as `provider/model`, then as `model`. What an operator wrote stays, unless
    `overwrite`. Models nothing is added to are left out; the others are whole, because a later
    configuration file replaces a list of targets.
    """
    models: dict[str, Any] = {}
    missing = []
    for name, model in config.models.items():
        targets, added = [], False
        for target in model.targets:
            found = known.get(f"{target.provider}/{target.model}") or known.get(target.model)
            written = _written(target)
            if found is None:
                missing.append(f"models.{name}: {target.provider}/{target.model}")
            else:
                merged = {**written, **found} if overwrite else {**found, **written}
                added = added or merged != written
                written = {key: merged[key] for key in (*written, *found) if key in merged}
            targets.append(written)
        if added:
            models[name] = {"targets": targets}
    return {"models": models}, missing


def _written(target: TargetConfig) -> dict[str, Any]:
    plain: dict[str, Any] = target.model_dump(mode="json", exclude_unset=True)
    prices = plain.get("usd_per_million")
    if prices is not None:
        plain["usd_per_million"] = _numbers(prices)
    return plain


def _numbers(prices: Mapping[str, Any]) -> dict[str, Any]:
    """Write decimals, which JSON has as text, as the plain numbers an operator writes."""
    return {
        key: _numbers(value) if isinstance(value, dict) else _plain(Decimal(str(value)))
        for key, value in prices.items()
        if value is not None
    }


def _entry(name: str, one: object) -> dict[str, Any]:
    if not isinstance(one, dict):
        raise NotAPriceMap(f"{name}: must be an object")
    found: dict[str, Any] = {}
    prices = _prices(name, one, "")
    if prices is not None:
        for key in one:
            tier = _ABOVE.fullmatch(key)
            if tier is not None:
                above = _prices(name, one, f"_above_{tier[1]}k_tokens")
                prices["above"] = {"tokens": int(tier[1]) * 1000, **(above or {})}
                break
        found["usd_per_million"] = prices
    window = _tokens(one.get("max_input_tokens")) or _tokens(one.get("max_tokens"))
    if window is not None:
        found["context_window"] = window
    if one.get("mode") == "embedding":
        found["endpoints"] = ["embeddings"]
    found |= {ours: False for theirs, ours in _ABILITIES.items() if one.get(theirs) is False}
    return found


def _prices(name: str, one: Mapping[str, Any], suffix: str) -> dict[str, Any] | None:
    found = {}
    for ours, theirs in _PRICES.items():
        value = one.get(theirs + suffix)
        if value is None:
            continue
        if not isinstance(value, Decimal) or not value.is_finite() or value < 0:
            raise NotAPriceMap(f"{name}.{theirs}{suffix}: must be a number of 0 or more")
        found[ours] = _plain((value * MILLION).quantize(DECIMALS))
    return found if "input" in found else None


def _plain(value: Decimal) -> int | float:
    # Six decimals at most, which a double tells apart up to a price of a billion.
    return int(value) if value == value.to_integral_value() else float(value)


def _tokens(value: object) -> int | None:
    if isinstance(value, Decimal) and value.is_finite() and value >= 1:
        return int(value)
    return None
