import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest

from experiments import configuration


@dataclasses.dataclass(frozen=True)
class Network:
    """Sizes."""

    widths: tuple[int, ...] = (8, 16)
    dropout: float | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a configuration may hold."""

    network: Network = Network()
    scale: float = 3
    steps: int = 5
    flag: bool = True
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    data: Path | None = None
    pair: tuple[int, str] = (1, "a")
    scales: tuple[float, ...] = ()


FULL = Config(Network((), 0.5), 2.5, 7, False, "ddim", Path("a/b"), (2, "x"), (1.0, 2.0))


@pytest.mark.parametrize("config", [Config(), FULL])
def test_a_configuration_survives_json(config):
    stored = json.loads(json.dumps(configuration.to_json(config)))
    found = configuration.from_json(Config, stored)
    assert found == config
    assert [type(value) for value in dataclasses.astuple(found)] == [
        type(value) for value in dataclasses.astuple(dataclasses.replace(config, scale=float(config.scale)))
    ]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"steps": "5"}, "Config.steps holds '5', which is no int"),
        ({"steps": True}, "Config.steps holds True, which is no int"),
        ({"steps": 5.5}, "Config.steps holds 5.5"),
        ({"sampler": "euler"}, "Config.sampler holds 'euler'"),
        ({"pair": [1]}, "Config.pair holds"),
        ({"scales": [1.0, "x"]}, r"Config.scales\[1\] holds 'x'"),
        ({"data": 3}, "Config.data holds 3, which is none of"),
        ({"network": {"widths": [8]}}, "Config.network has the fields"),
        ({"network": 3}, "Config.network has the fields"),
        ({"stops": 3}, "Config has the fields"),
    ],
)
def test_what_a_field_cannot_hold_is_refused_by_name(change, error):
    with pytest.raises(ValueError, match=error):
        configuration.from_json(Config, {**configuration.to_json(Config()), **change})


def test_differences_name_every_field_with_both_values():
    before, after = configuration.to_json(Config()), configuration.to_json(FULL)
    assert configuration.differences(before, before) == []
    found = configuration.differences(before, {**after, "data": before["data"], "extra": 1})
    assert found == [
        "network.widths is [8, 16] in the run and [] here",
        "network.dropout is null in the run and 0.5 here",
        "scale is 3 in the run and 2.5 here",
        "steps is 5 in the run and 7 here",
        "flag is true in the run and false here",
        'sampler is "ddpm" in the run and "ddim" here',
        'pair is [1, "a"] in the run and [2, "x"] here',
        "scales is [] in the run and [1.0, 2.0] here",
        "extra is absent in the run and 1 here",
    ]


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (Config(scale=float("nan")), "--scale must be finite, got nan"),
        (Config(scales=(1.0, float("inf"))), "--scales must be finite, got inf"),
        (Config(Network(dropout=-float("inf"))), "--network.dropout must be finite, got -inf"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(config, option):
    configuration.check_finite(Config())
    with pytest.raises(ValueError, match=option):
        configuration.check_finite(config)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "is no run: it holds no config.json"),
        ('{"experiment": "digits",\n', r"config\.json:\d: malformed JSON"),
        ("[]", "does not hold the settings of a run"),
        ('{"experiment": "digits"}', "does not hold the settings of a run"),
    ],
)
def test_a_folder_that_is_no_run_is_named(tmp_path, text, error):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=error):
        configuration.read_run(tmp_path)


def test_a_run_is_finished_when_its_environment_says_so(tmp_path):
    assert configuration.finished(tmp_path) is None
    path = tmp_path / "environment.json"
    path.write_text('{"finished": null}')
    assert configuration.finished(tmp_path) is None
    path.write_text('{"finished": "2026-01-01T00:00:00Z"}')
    assert configuration.finished(tmp_path) == "2026-01-01T00:00:00Z"
    path.write_text("{}")
    with pytest.raises(ValueError, match="does not hold the environment of a run"):
        configuration.finished(tmp_path)
