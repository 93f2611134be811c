"""`llm-edge prices import`, from the file to a configuration that loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from extproc.cli import main
from extproc.config import load
from extproc.snapshot import compile_snapshot

MAP: dict[str, Any] = {
    "sample_spec": {"input_cost_per_token": "a description"},
    "gpt-x": {
        "input_cost_per_token": 1.5e-07,
        "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08,
        "cache_creation_input_token_cost": 1.875e-07,
        "cache_creation_input_token_cost_above_1hr": 3e-07,
        "max_input_tokens": 128000,
        "max_output_tokens": 16384,
        "litellm_provider": "openai",
        "mode": "chat",
        "supports_function_calling": True,
        "supports_vision": False,
    },
    "local/long": {
        "input_cost_per_token": 0.00000125,
        "output_cost_per_token": 0.00001,
        "input_cost_per_token_above_200k_tokens": 0.0000025,
        "output_cost_per_token_above_200k_tokens": 0.000015,
        "cache_creation_input_token_cost_above_200k_tokens": 0.000003125,
        "max_tokens": 1048576,
    },
    "long": {"input_cost_per_token": 9},
    "embed": {"input_cost_per_token": 2e-08, "mode": "embedding", "output_cost_per_token": 0.0},
}
CONFIG = {
    "providers": {"local": {"dialect": "openai", "endpoint": "http://127.0.0.1:9/v1"}},
    "models": {
        "small": {
            "strategy": "weighted",
            "targets": [
                {"provider": "local", "model": "gpt-x", "weight": 9},
                {"provider": "local", "model": "nowhere"},
            ],
        },
        "long": {"targets": [{"provider": "local", "model": "long"}]},
        "embed": {
            "targets": [{"provider": "local", "model": "embed", "usd_per_million": {"input": 0.5}}]
        },
    },
}


def run(directory: Path, text: str, *words: str) -> Any:
    """Run the import on a map and the configuration."""
    (directory / "map.json").write_text(text)
    (directory / "llm-edge.yaml").write_text(yaml.safe_dump(CONFIG))
    command = ["prices", "import", str(directory / "map.json")]
    return CliRunner().invoke(
        main, [*command, "--config", str(directory / "llm-edge.yaml"), *words]
    )


def test_what_is_written_loads_on_top_of_the_configuration(tmp_path: Path) -> None:
    """Prices exact, windows and abilities in place, the rest as it was."""
    done = run(tmp_path, json.dumps(MAP), "--out", str(tmp_path / "prices.yaml"))
    assert done.exit_code == 0, done.output
    assert "not in map.json: models.small: local/nowhere" in done.stderr
    assert "3 of 3 models" in done.stderr
    config = load([tmp_path / "llm-edge.yaml", tmp_path / "prices.yaml"], {})
    models = compile_snapshot(config, 0).models
    small, nowhere = models["small"].targets
    assert models["small"].strategy == "weighted"
    assert (small.weight, small.context_window, small.lacks) == (9, 128000, {"images"})
    assert small.price is not None
    assert (small.price.input, small.price.output, small.price.cached_input) == (
        *(150_000, 600_000, 75_000),
    )
    assert (small.price.cache_write, small.price.cache_write_1h) == (187_500, 300_000)
    assert nowhere.price is None
    long = models["long"].targets[0]
    assert long.context_window == 1048576
    assert long.price is not None
    assert long.price.of(200_000).input == 1_250_000
    assert long.price.of(200_001).input == 2_500_000
    assert long.price.of(200_001).output == 15_000_000
    assert long.price.of(200_001).cache_write == 3_125_000
    assert models["embed"].targets[0].lacks == {"/chat", "/completions", "/responses"}


@pytest.mark.parametrize(
    ("words", "price"), [((), 0.5), (("--overwrite",), 0.02)], ids=["kept", "overwritten"]
)
def test_what_an_operator_wrote_stays(tmp_path: Path, words: tuple[str, ...], price: float) -> None:
    """Unless it is asked otherwise."""
    done = run(tmp_path, json.dumps(MAP), *words)
    target = yaml.safe_load(done.stdout)["models"]["embed"]["targets"][0]
    assert target["usd_per_million"]["input"] == price


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("{", "not JSON", id="not JSON"),
        pytest.param("[]", "the top level must be an object", id="a list"),
        pytest.param('{"m": 1}', "m: must be an object", id="a model that is a number"),
        pytest.param(
            '{"m": {"input_cost_per_token": "1"}}',
            "m.input_cost_per_token: must be a number",
            id="a price that is a text",
        ),
        pytest.param(
            '{"m": {"input_cost_per_token": -1}}', "must be a number", id="a negative price"
        ),
        pytest.param(
            '{"m": {"input_cost_per_token": NaN}}', "must be a number", id="a price of NaN"
        ),
    ],
)
def test_a_file_in_another_format_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """With exit code 2, naming the file and the place."""
    done = run(tmp_path, text)
    assert done.exit_code == 2
    assert "map.json" in done.output
    assert says in done.output


def test_a_missing_file_is_bad_usage(tmp_path: Path) -> None:
    """Exit code 2 and the file's name."""
    done = CliRunner().invoke(main, ["prices", "import", str(tmp_path / "absent.json")])
    assert done.exit_code == 2
    assert "absent.json" in done.output
