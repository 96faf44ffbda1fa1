"""Autoregressive and energy-based models of several sources, convex and as networks, with exact total variation.

A9, A10 and their kin: the paper states bounds for these models and measures none of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.keys import key_of
from experiments.multi_source import figures_models, judging_models
from experiments.multi_source.convex import ConvexErrors, simulate
from experiments.multi_source.families import families
from experiments.multi_source.judging_models import Trained
from experiments.multi_source.network_kinds import Kind, kinds
from experiments.multi_source.networks import Curves, Problems, draw_problems, train
from experiments.run_directory import Interrupted, RunDirectory


def measure(config: Any, run: RunDirectory) -> None:
    """Measure the convex models, then the networks."""
    began = time.perf_counter()
    convex = _fit_convex(config, run)
    seconds = time.perf_counter() - began
    for family, letter in zip(families(), ("A9", "A10"), strict=True):
        judging_models.record_convex(run, family, letter, convex[family.name], seconds)
    judging_models.record_prediction(run, convex, seconds)
    figures_models.convex(run, convex)
    began = time.perf_counter()
    trained = _train_networks(config, run)
    seconds = time.perf_counter() - began
    for kind, letter in zip(kinds(), ("A9", "A10"), strict=True):
        judging_models.record_networks(run, kind, letter, trained[kind.name], seconds)
    figures_models.networks(run, trained)
    figures_models.energies(run, trained["energy-based"])


def _fit_convex(config: Any, run: RunDirectory) -> dict[str, ConvexErrors]:
    jobs = {
        family.name: partial(
            simulate, key_of(run, family.name), family, tuple(config.model_sources), config.model_replicates
        )
        for family in families()
    }
    found = dict(_finish(run, jobs, "convex models"))
    return {family.name: found[family.name] for family in families()}


def _train_networks(config: Any, run: RunDirectory) -> dict[str, Trained]:
    """Train both arms of both kinds for every similarity and number of sources."""
    most, fewest = max(config.model_sources), min(config.model_sources)
    problems: dict[tuple[str, float], Problems] = {}
    for kind in kinds():
        # The same keys for all similarities, so that these differ in nothing else.
        keys = jax.random.split(key_of(run, f"{kind.name} network"), config.network_seeds)
        for similarity in config.network_similarities:
            drawn = draw_problems(keys, kind, most, kind.samples // fewest, np.float32(similarity))
            problems[kind.name, similarity] = drawn

    def job(kind: Kind, similarity: float, count: int, shared: bool) -> Curves:
        drawn = problems[kind.name, similarity].of(count, kind.samples // count)
        return train(kind, drawn, config.network_steps, shared=shared)

    jobs = {
        (kind.name, shared, similarity, count): partial(job, kind, similarity, count, shared)
        for similarity in config.network_similarities
        for count in config.model_sources
        for kind in kinds()
        for shared in (False, True)
    }
    found = dict(_finish(run, jobs, "networks of several sources"))
    both = [(similarity, count) for similarity in config.network_similarities for count in config.model_sources]
    return {
        kind.name: Trained(
            {of: np.asarray(problems[kind.name, of].log_law) for of in config.network_similarities},
            *({pair: found[kind.name, shared, *pair] for pair in both} for shared in (False, True)),
        )
        for kind in kinds()
    }


def _finish(run: RunDirectory, jobs: Mapping[Any, Callable[[], Any]], title: str) -> Iterator[tuple[Any, Any]]:
    """Run jobs one after the other and yield the name and result of each.

    Not side by side: two large programs at once have been seen to wait for each other for ever on a CPU.

    Raises:
        Interrupted: a signal came.
    """
    with run.progress(len(jobs), title) as progress:
        for number, (name, job) in enumerate(jobs.items(), start=1):
            if run.stop():
                raise Interrupted
            yield name, job()
            progress.update(number)
