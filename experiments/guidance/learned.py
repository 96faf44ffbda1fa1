"""Three clusters again, where the condition is only known from few points, to a small network (D3-learned)."""

import time
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments import stacked
from experiments.claims import Cell
from experiments.guidance import clouds, figures, references
from experiments.run_directory import RunDirectory
from jaxgen.diffusion import Level, Predict
from jaxgen.models import MLP, MLPConfig
from jaxgen.pipelines import EDMObjective
from jaxgen.typing import Params, PRNGKey, Sample, Scalar

# The points under the condition have a standard deviation of 1.9.
OBJECTIVE = EDMObjective(data_std=1.9, log_sigma_mean=0.0, log_sigma_std=1.5, sigma_max=80.0)
MODEL = MLP(MLPConfig(dimension=1, width=128, layers=3))
METHODS = {"DDIM": clouds.by_ddim, "DDPM": clouds.by_ddpm}
SCALES = (1.0, 3.0)
_DRAWS, _LEARNING_RATE, _SAMPLING_STEPS = 64, 1e-3, 100


class Points(NamedTuple):
    """The training set of one network: points `[largest, 1]`, of which the first `count` are meant."""

    points: Float[Array, "largest 1"]
    count: Int[Array, ""]


def measure(config: Any, run: RunDirectory) -> None:
    """Train a network for each seed and number of points, and guide it by the exact law of all clusters."""
    began = time.perf_counter()
    sizes = config.learned_sizes
    sets = training_sets(sizes, config.learned_seeds, run.seed)
    params = stacked.train(
        run,
        "three_clusters",
        stacked.StackedUpdate(MODEL, loss),
        sets,
        jax.random.fold_in(jax.random.key(run.seed), 3),
        steps=config.learned_steps,
        draws=_DRAWS,
        learning_rate=_LEARNING_RATE,
        settings={"steps": config.learned_steps, "sizes": list(sizes), "seeds": config.learned_seeds, "seed": run.seed},
    )
    grid = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), OBJECTIVE.grid(_SAMPLING_STEPS))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), 4), config.learned_seeds * len(sizes))
    found = {}
    for name, method in METHODS.items():
        rows = _summaries(method, params, keys, jnp.asarray(SCALES, jnp.float32), grid, config.learned_samples)
        shaped = (np.asarray(of, np.float64).reshape(config.learned_seeds, len(sizes), *of.shape[1:]) for of in rows)
        found[name] = clouds.Statistics(*shaped)
    cells = []
    for row, size in enumerate(sizes):
        for name, of in found.items():
            away = 1.0 - of.shares[:, row, :, 2]
            title = f"{size} points, {name}: share below 1.5 at scale 1 less that at scale {SCALES[1]:g}"
            cells.append(Cell(title, values=away[:, 0] - away[:, 1]))
    run.record("D3-learned", cells, seconds=time.perf_counter() - began)
    run.arrays(**{f"learned_{name}_shares".lower(): of.shares for name, of in found.items()})
    run.note(_told(sizes, found))
    points = np.asarray(sets.points)[: len(sizes), :, 0]
    figures.learned_clusters(run, sizes, SCALES, found, points)


def training_sets(sizes: tuple[int, ...], seeds: int, seed: int) -> Points:
    """Draw the sets of every seed and size, `[seeds * sizes, largest, 1]`, the smaller the beginning of the larger."""
    largest = max(sizes)
    points = np.empty((seeds, largest, 1), np.float32)
    for number in range(seeds):
        random = np.random.default_rng(1000 * seed + number)
        centres = random.choice([-3.0, 0.0, 3.0], size=(largest, 1), p=[0.05, 0.15, 0.80])
        points[number] = centres + random.normal(size=(largest, 1))
    return Points(np.repeat(points, len(sizes), axis=0), np.tile(np.asarray(sizes, np.int32), seeds))  # pyright: ignore[reportArgumentType]


def loss(model: MLP, params: Params, key: PRNGKey, given: Points) -> Scalar:
    """Compute the loss of Karras et al. for one draw from a training set."""
    choice_key, level_key, loss_key = jax.random.split(key, 3)
    x0 = given.points[jax.random.randint(choice_key, (), 0, given.count)]
    return OBJECTIVE.loss(predictor(model, params), loss_key, x0, OBJECTIVE.draw_level(level_key))


def predictor(model: MLP, params: Params) -> Predict:
    """Return the preconditioned network."""
    network = lambda x, noise: cast(Sample, model.apply({"params": params}, x, noise))  # noqa: E731
    return lambda x, level: OBJECTIVE.predict(network, x, level)


@partial(jax.jit, static_argnames=("method", "particles"))
def _summaries(
    method: clouds.Method, params: Params, keys: PRNGKey, scales: Array, grid: Level, particles: int
) -> tuple:
    unconditional = clouds.cloud_predictor(clouds.three_clusters().unconditional)
    mean = jnp.full((particles, 1), 2.25)  # of the condition

    def of_network(given: tuple) -> tuple:
        params, key = given
        one = predictor(MODEL, params)
        predictors = (lambda x, level: jax.vmap(lambda x: one(x, level))(x), unconditional)

        def draw(scale: Scalar) -> Array:
            # Neither sampler asks for the score of clean samples.
            return clouds.run_sampler(method, predictors, lambda x: x, mean, key, scale, grid)

        # Every scale has the same noise.
        return jax.vmap(lambda scale: clouds.summary(draw(scale)[:, 0]))(scales)

    return jax.lax.map(of_network, (params, keys))


def _told(sizes: tuple[int, ...], found: dict[str, clouds.Statistics]) -> str:
    rows = []
    for column, (name, of) in enumerate(found.items()):
        exact = 1.0 - references.THREE_CLUSTERS[SCALES[1]][column][2]
        shares = ", ".join(
            f"{1 - of.shares[:, row, 1, 2].mean():.4f} with {size} points" for row, size in enumerate(sizes)
        )
        rows.append(f"guided {name} leaves {exact:.4f} with exact scores, {shares}")
    return f"Three clusters at scale {SCALES[1]:g}, share off the target: {'; '.join(rows)}."
