"""On Mesa-Optimization in Autoregressively Trained Transformers, as claims that are measured.

A linear attention layer learns x_{t+1} = W x_t with a new diagonal W in each sequence. Its gradient flow is known in
closed form from end to end: it is held against exact flows of the whole layer and against gradient descent on sampled
sequences at the paper's sizes, each with its scatter.
"""

import dataclasses
from collections.abc import Mapping

from experiments.mesa_optimization.claims import CLAIMS
from experiments.run_directory import RunDirectory

__all__ = ["CLAIMS", "PARTS", "PRESETS", "PRESET_NOTES", "Config", "check", "run"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure how a linear attention layer learns to take one gradient step in its context, curve by curve."""

    dimension: int = 5
    """Coordinates d of a token."""
    length: int = 100
    """Tokens T of a sequence, in training and in the test; step sizes are the paper's times 98 / (T - 2)."""
    small_length: int = 5
    """Tokens of a sequence in the small context."""
    sequences: int = 10_000
    """Training sequences of a seed, a multiple of the block; test sequences, drawn anew, are as many."""
    epochs: int = 200
    """Full-batch steps of gradient descent."""
    seeds: int = 8
    """Training sets, each with its own test set and Gaussian initial values; twelve times as many in the small
    context, half as many of tokens of ones."""
    block_size: int = 100
    """Sequences whose features are held at once."""
    test_lengths: tuple[int, ...] = (10, 30, 100, 300)
    """Lengths of test sequences on which the ratio of prediction to target is measured; `length` is one of them."""
    law_sequences: int = 10_000
    """Training sequences of a seed for each of the eight laws; of Laplace tokens, whose tails are heavy, four times."""
    process_sequences: int = 5000
    """Training sequences of a seed, and fresh ones, for the processes beyond the paper's."""
    scatter_seeds: int = 1200
    """Training sets, of 2,000 sequences with d = 3 and T = 12 each, whose scatter is compared with its prediction."""
    direct_sequences: int = 500
    """Sequences on which gradient descent also differentiates the layer itself, at most 2,000."""
    direct_epochs: int = 20
    """Steps of that descent."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Numbers of stacked layers that are trained."""
    depth_steps: int = 3000
    """Adam steps of the stacked layers."""


PRESETS: Mapping[str, Config] = {
    "ci": Config(
        dimension=3,
        length=20,
        sequences=2000,
        seeds=3,
        law_sequences=1000,
        process_sequences=1000,
        test_lengths=(20,),
        scatter_seeds=40,
        direct_sequences=60,
        direct_epochs=5,
        depths=(1, 2),
        depth_steps=150,
    ),
    "default": Config(),
    "gpu": Config(seeds=16, depths=(1, 2, 3, 4), depth_steps=10_000),
    "paper": Config(seeds=32, direct_sequences=2000, direct_epochs=200),
}
PRESET_NOTES = {
    "ci": "a minute on 2 CPU cores: exact flows at the paper's size, samples with d = 3, T = 20, three seeds",
    "default": "about ten minutes on 2 CPU cores: the paper's sizes, eight seeds",
    "gpu": "sixteen seeds, and deeper stacks that are trained for longer; in parts",
    "paper": "32 seeds, and the layer itself differentiated for all epochs; 40 minutes on 2 CPU cores, 8 GiB of memory",
}
PARTS = {
    "exact": "the theorem on the population, tokens of ones, and what each law lets a layer explain",
    "samples": "training on samples at the settings of the paper, and on eight laws",
    "beyond": "other processes, and more than one step",
}

_MOST = 10_000_000


def check(config: Config, run: RunDirectory) -> None:
    """Refuse, before anything is written, what measures nothing, and runs that trained otherwise."""
    _check_numbers(config)
    from experiments.mesa_optimization import training

    training.check(config, run)


def run(config: Config, run: RunDirectory) -> None:
    """Follow exact flows, train on samples or take what another run trained, and measure both."""
    from experiments.mesa_optimization import beyond, capability, depth, exact, open_case, sampled, training

    if run.part in (None, "exact"):
        exact.measure(config, run)
        open_case.measure(config, run)
        capability.measure(config, run)
    if run.part in (None, "samples"):
        sampled.measure(config, run, training.obtain(config, run))
        capability.measure_samples(config, run)
    if run.part in (None, "beyond"):
        beyond.measure(config, run)
        depth.measure(config, run)


def _check_numbers(config: Config) -> None:
    for name, least, most in (
        ("dimension", 2, 8),  # 8 d^3 features, whose correlations fit into memory up to d = 8
        ("length", 3, 1000),
        ("small_length", 3, 1000),
        ("epochs", 1, _MOST),
        ("block_size", 1, _MOST),
        ("seeds", 2, _MOST),
        ("scatter_seeds", 2, _MOST),
        ("direct_sequences", 2, 2000),
        ("direct_epochs", 1, _MOST),
        ("depth_steps", 1, _MOST),
    ):
        if not least <= getattr(config, name) <= most:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} must lie between {least} and {most}, got {getattr(config, name)}")
    for name in ("sequences", "law_sequences", "process_sequences"):
        count = getattr(config, name)
        if count < 1 or count % config.block_size:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} must be a positive multiple of --block-size {config.block_size}, got {count}")
    if min(config.test_lengths, default=0) < 3 or config.length not in config.test_lengths:
        raise ValueError(
            f"--test-lengths must be lengths of at least 3, --length {config.length} among them, got "
            f"{list(config.test_lengths)}"
        )
    if min(config.depths, default=0) < 1 or list(config.depths) != sorted(set(config.depths)):
        raise ValueError(f"--depths must be one or more rising numbers of layers, got {list(config.depths)}")
