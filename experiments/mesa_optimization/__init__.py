"""On Mesa-Optimization in Autoregressively Trained Transformers, as claims that are measured.

A linear attention layer learns x_{t+1} = W x_t with a new diagonal W in each sequence. Its gradient flow is known in
closed form from end to end: it is held against exact flows of the whole layer and against gradient descent on sampled
sequences at the paper's sizes, each with its scatter.
"""

import dataclasses
from collections.abc import Mapping

from experiments.mesa_optimization.claims import CLAIMS
from experiments.run_directory import RunDirectory

__all__ = ["CLAIMS", "PRESETS", "PRESET_NOTES", "Config", "check", "run"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure how a linear attention layer learns to take one gradient step in its context, curve by curve."""

    dimension: int = 5
    """Coordinates d of a token."""
    length: int = 100
    """Tokens T of a sequence, in training and in the test."""
    small_length: int = 5
    """Tokens of a sequence in the small context."""
    sequences: int = 10_000
    """Training sequences of a seed, a multiple of the block; test sequences, drawn anew, are as many."""
    epochs: int = 200
    """Full-batch steps of gradient descent."""
    seeds: int = 8
    """Training sets, each with its own test set and Gaussian initial values."""
    block_size: int = 100
    """Sequences whose features are held at once."""
    test_lengths: tuple[int, ...] = (10, 30, 100, 300)
    """Lengths of test sequences on which the ratio of prediction to target is measured."""
    law_sequences: int = 5000
    """Training sequences of a seed for each of the eight laws, and for the processes beyond the paper's."""
    scatter_seeds: int = 400
    """Training sets, of 2,000 sequences with d = 3 and T = 12 each, whose scatter is compared with its prediction."""
    direct_sequences: int = 500
    """Sequences on which gradient descent also differentiates the layer itself."""
    direct_epochs: int = 20
    """Steps of that descent."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Numbers of stacked layers that are trained."""
    depth_steps: int = 4000
    """Adam steps of the stacked layers."""


PRESETS: Mapping[str, Config] = {
    "ci": Config(
        sequences=300,
        seeds=2,
        law_sequences=200,
        test_lengths=(100,),
        scatter_seeds=40,
        direct_sequences=60,
        direct_epochs=5,
        depths=(1, 2),
        depth_steps=150,
    ),
    "default": Config(),
    "gpu": Config(sequences=100_000, seeds=16, law_sequences=50_000, scatter_seeds=4000, direct_sequences=10_000),
    "paper": Config(seeds=32, direct_sequences=10_000, direct_epochs=200),
}
PRESET_NOTES = {
    "ci": "a minute on 2 CPU cores: the paper's d, T and number of epochs, few sequences, two seeds",
    "default": "about ten minutes on 2 CPU cores: the paper's sizes, eight seeds",
    "gpu": "ten times the sequences of the paper, sixteen seeds",
    "paper": "32 seeds, and the layer itself differentiated on all 10,000 sequences for all epochs",
}


def check(config: Config, run: RunDirectory) -> None:
    """Refuse, before anything is written, what measures nothing, and runs that trained otherwise."""
    _check_numbers(config)
    from experiments.mesa_optimization import training

    training.check(config, run)


def run(config: Config, run: RunDirectory) -> None:
    """Follow exact flows, train on samples or take what another run trained, and measure both."""
    from experiments.mesa_optimization import beyond, capability, depth, exact, open_case, sampled, training

    for part in (exact, open_case, capability):
        part.measure(config, run)
    sampled.measure(config, run, training.obtain(config, run))
    for part in (beyond, depth):
        part.measure(config, run)


def _check_numbers(config: Config) -> None:
    for name, least in (("dimension", 1), ("length", 3), ("small_length", 3), ("epochs", 1), ("block_size", 1)):
        _at_least(name, getattr(config, name), least)
    for name in ("seeds", "scatter_seeds", "direct_sequences", "direct_epochs", "depth_steps"):
        _at_least(name, getattr(config, name), 2)
    for name in ("sequences", "law_sequences"):
        count = getattr(config, name)
        if count < 1 or count % config.block_size:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} must be a positive multiple of --block-size {config.block_size}, got {count}")
    if config.dimension > 8:
        raise ValueError(f"--dimension must be at most 8, whose 8 d^3 features fit into memory, got {config.dimension}")
    if min(config.test_lengths, default=0) < 3:
        raise ValueError(f"--test-lengths must be one or more lengths of at least 3, got {list(config.test_lengths)}")
    if min(config.depths, default=0) < 1 or list(config.depths) != sorted(set(config.depths)):
        raise ValueError(f"--depths must be one or more rising numbers of layers, got {list(config.depths)}")


def _at_least(name: str, value: int, least: int) -> None:
    if not least <= value <= 10_000_000:
        raise ValueError(f"--{name.replace('_', '-')} must lie between {least} and 10000000, got {value}")
