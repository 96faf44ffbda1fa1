import dataclasses
import types
from pathlib import Path
from typing import Literal

import pytest

from experiments import arguments


@dataclasses.dataclass(frozen=True)
class Network:
    """The network."""

    num_blocks: int = 2
    """Residual blocks."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a network."""

    network: Network = Network()
    sampler: Literal["ddpm", "ddim"] = "ddim"
    """Sampler."""
    label: int | None = None
    """Digit, or none for all."""
    scales: tuple[float, ...] = (1.0, 2.0)
    """Guidance scales."""
    augment: bool = True
    """Whether to shift the images."""


PACKAGE = types.ModuleType("sampled")
PACKAGE.Config, PACKAGE.PRESETS, PACKAGE.CLAIMS = Config, {"default": Config(), "ci": Config(Network(1))}, ()


def parse(*argv):
    return arguments.parse(PACKAGE, "sampled", argv)


def refused(*argv):
    with pytest.raises(ValueError) as caught:
        parse(*argv)
    return str(caught.value)


def test_every_kind_of_field_is_set_over_the_preset():
    fields = (
        "--network.num-blocks",
        "5",
        "--sampler=ddpm",
        "--label",
        "3",
        "--scales",
        "0.5",
        "-1",
        "4",
        "--no-augment",
    )
    found = parse("--seed", "9", *fields, "--mesh", "data=4,model=2", "--out", "a")
    assert found.config == Config(Network(5), "ddpm", 3, (0.5, -1.0, 4.0), False)
    assert (found.preset, found.seed, found.part, found.source) == ("default", 9, None, None)
    assert (found.options.mesh, found.options.out) == ("data=4,model=2", Path("a"))
    assert parse("--preset", "ci", "--label", "None").config == Config(Network(1))
    assert parse("--strict", "--traceback").options == arguments.Options(strict=True, traceback=True)
    assert parse("--fully-sharded", "--tensorboard").options == arguments.Options(fully_sharded=True, tensorboard=True)
    joined = parse("--coordinator", "[::1]:80", "--num-processes", "2", "--process-id", "1").options.coordinates()
    assert joined == ("[::1]:80", 2, 1, 300)


@pytest.mark.parametrize("terminal", ["utf-8", "ascii"])
def test_what_a_field_cannot_take_is_told_in_one_sentence_on_any_terminal(terminal, monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding=terminal) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert refused("--network.num_blocks", "2.5").startswith("--network.num-blocks takes INT, got '2.5'; --help")
        assert refused("--label", "x").startswith("--label takes {None}|INT, got 'x'; ")
        assert refused("--scales", "1", "x").startswith("--scales takes [FLOAT [FLOAT ...]], got ")
        assert refused("--sampler", "ddin").startswith(
            "invalid choice 'ddin' for argument '--sampler'. Expected one of"
        )
        assert refused("--seed", "1e3").startswith("--seed takes INT, got '1e3'; ")


def test_an_unknown_option_is_told_with_the_nearest():
    assert refused("--network.blocks", "2").startswith(
        "sampled has no option --network.blocks; the nearest is '--network.num-"
    )
    assert refused("--form", "a").startswith("sampled has no option --form; the nearest is '--from'; ")
    assert refused("--xyzzy=3") == "sampled has no option --xyzzy; --help lists them"


def test_the_mesh_is_read_as_devices_along_each_axis():
    assert arguments.parse_mesh("data=4,model=2") == {"data": 4, "model": 2}
    assert arguments.parse_mesh("model=3") == {"model": 3}


@pytest.mark.parametrize(
    "text", ["", "data", "data=", "data=0", "data=-1", "data=1.5", "data=4,", "rows=2", "data=1,data=2", "data=٣"]
)
def test_a_mesh_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"as in data=4,model=2; got "):
        arguments.parse_mesh(text)
