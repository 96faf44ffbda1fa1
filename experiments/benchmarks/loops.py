"""The computations that the sampler benchmarks compare: each side draws the same samples, or makes the same calls."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.benchmarks import peers
from jaxgen.diffusion import (
    Denoiser,
    Level,
    Prediction,
    RectifiedFlow,
    Sampler,
    classifier_free,
    ddim,
    denoiser,
    discrete,
    edm_preconditioned,
    from_noise,
    guide,
    interval_scale,
    karras_grid,
    sample,
    scaled_linear_betas,
    time_grid,
    timestep_grid,
    trailing_timesteps,
)
from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params
from jaxgen.typing import Params, PRNGKey, Sample

FEATURES = 64
_STD = 0.75  # of the data, in their units
_FLOW = RectifiedFlow()
_DIGITS = ImageMLP(ImageMLPConfig())


class Sides(NamedTuple):
    """Two computations that are to be timed; each returns when its result is there, as numpy."""

    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]


def ddim_eta_one(model: Denoiser) -> Sampler:
    """Build the ancestral sampler: a function of the module, as the compilation cache needs it."""
    return ddim(model, 1.0)


@partial(jax.jit, static_argnums=(0, 1))
def _draw(
    method: Callable[[Denoiser], Sampler], predict: Callable, params: Params, key: PRNGKey, x: Sample, grid: Level
) -> Sample:
    """Draw one sample from each row of x; predict(params, x, level)."""
    model = denoiser(partial(predict, params))
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(x)))
    return jax.vmap(lambda key, x: sample(method(model), key, x, grid))(keys, x)


def _noise(seed: int, batch_size: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng((seed, 1)).standard_normal((batch_size, FEATURES)).astype(np.float32)


# Against diffusers: the small network predicts the noise of Stable Diffusion's discrete levels.


def _predict_noise(network: peers.SmallNetwork, x: Sample, level: Level) -> Prediction:
    return from_noise(x, level, peers.apply_in_jax(network, x, level.time))


def against_diffusers(
    method: Callable[[Denoiser], Sampler], scheduler: str, sizes: Any, seed: int, **options: Any
) -> Sides:
    """Set a sampler against the loop of diffusers on the same device; both make their grid anew in every call.

    Args:
        method: builds the sampler.
        scheduler: name of the class of diffusers that makes the same steps, under `options`.
        sizes: `SamplerSizes`.
        seed: of the network and the noise.
        options: of the scheduler.

    Raises:
        ImportError: torch or diffusers is not installed, or torch does not see the GPU; says so.
    """
    network = peers.small_network(seed, FEATURES, sizes.width)
    start = _noise(seed, sizes.batch_size)
    key, params, x = jax.device_put((jax.random.key(seed), network, start))
    device = "cuda" if x.device.platform == "gpu" else "cpu"
    loop = peers.diffusers_loop(scheduler, network, start, sizes.steps, device=device, **options)

    def ours() -> np.ndarray:
        timesteps = trailing_timesteps(peers.TRAINING_STEPS, sizes.steps)
        grid = timestep_grid(discrete(scaled_linear_betas(peers.TRAINING_STEPS)), timesteps)
        return np.asarray(_draw(method, _predict_noise, params, key, x, grid))

    return Sides(ours, loop)


# Against a Python loop: the small network, preconditioned, on Karras' sigmas.


def _predict_x0(network: peers.SmallNetwork, x: Sample, level: Level) -> Prediction:
    return edm_preconditioned(lambda x, c: peers.apply_in_jax(network, x, c), x, level, _STD)


@jax.jit
def _denoise(network: peers.SmallNetwork, x: Sample, sigma: Array) -> Sample:
    level = Level(sigma, jnp.ones_like(sigma), sigma)
    return jax.vmap(lambda x: _predict_x0(network, x, level).x0)(x)


def against_python_loop(sizes: Any, seed: int) -> Sides:
    """Set DDIM against `sample_euler` of k-diffusion, restated, with the same denoiser."""
    grid = karras_grid(sizes.steps)
    network = jax.device_put(peers.small_network(seed, FEATURES, sizes.width))
    x, key = jnp.asarray(_noise(seed, sizes.batch_size, float(np.max(grid.sigma)))), jax.random.key(seed)
    sigmas = jnp.asarray(grid.sigma, jnp.float32)
    return Sides(
        lambda: np.asarray(_draw(ddim, _predict_x0, network, key, x, grid)),
        lambda: np.asarray(peers.k_diffusion_loop(partial(_denoise, network), x, sigmas)),
    )


# Against hackable_diffusion: the posterior mean of a Gaussian, which costs nothing, on a straight path.


def _predict_gaussian(params: Params, x: Sample, level: Level) -> Prediction:
    del params
    variance = (level.alpha * _STD) ** 2 + level.sigma**2
    return Prediction(level.alpha * _STD**2 / variance * x, level.sigma / variance * x)


@partial(jax.jit, static_argnames=("steps", "stochasticity", "store_trajectory"))
def _hackable(key: PRNGKey, x: Array, **options: Any) -> tuple:
    return peers.hackable_loop(partial(_predict_gaussian, ()), _FLOW.alpha, _FLOW.sigma, key, x, **options)


def _hackable_grid(steps: int) -> Level:
    return time_grid(_FLOW, np.linspace(1.0 - 1e-6, 1e-6, steps + 1))


def against_hackable(sizes: Any, seed: int, *, stochastic: bool) -> Sides:
    """Set DDIM with eta 0 or 1 against the loop of hackable_diffusion, restated, as it is by default."""
    grid, key = _hackable_grid(sizes.steps), jax.random.key(seed)
    x = jnp.asarray(_noise(seed, sizes.free_batch_size))
    method, stochasticity = (ddim_eta_one, 1.0) if stochastic else (ddim, 0.0)

    def theirs() -> np.ndarray:
        return np.asarray(jax.block_until_ready(_hackable(key, x, steps=sizes.steps, stochasticity=stochasticity))[0].x)

    return Sides(lambda: np.asarray(_draw(method, _predict_gaussian, (), key, x, grid)), theirs)


def memory_of(steps: int, sizes: Any) -> dict[str, int]:
    """Return the bytes of the compiled programs: arguments, results and what XLA allocates between.

    `jaxgen`, and hackable_diffusion with and without the trajectory that it returns by default.
    """
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((sizes.free_batch_size, FEATURES), jnp.float32)
    programs = {
        "jaxgen": _draw.lower(ddim, _predict_gaussian, (), key, x, _hackable_grid(steps)),
        "trajectory": _hackable.lower(key, x, steps=steps),
        "no trajectory": _hackable.lower(key, x, steps=steps, store_trajectory=False),
    }
    found: dict[str, Any] = {name: lowered.compile().memory_analysis() for name, lowered in programs.items()}
    return {
        name: of.argument_size_in_bytes + of.output_size_in_bytes + of.temp_size_in_bytes - of.alias_size_in_bytes
        for name, of in found.items()
    }


# With the network of the digits.


def _digits_params(seed: int) -> Params:
    """Fill the parameters with numbers of the usual size; what they are does not matter to the time."""
    random = np.random.default_rng((seed, 2))
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape) / max(leaf.shape[0], 1) ** 0.5, leaf.dtype),
        abstract_params(_DIGITS),
    )


def _call_digits(params: Params, x: Sample, condition: Sample, label: Array) -> Sample:
    return _DIGITS.apply({"params": params}, x, condition, label)  # pyright: ignore[reportReturnType]


def _predict_digit(params: Params, x: Sample, level: Level, label: Array) -> Prediction:
    return edm_preconditioned(lambda x, condition: _call_digits(params, x, condition, label), x, level, _STD)


@jax.jit
def _draw_digits(params: Params, key: PRNGKey, x: Sample, labels: Array, grid: Level) -> Sample:
    def one(x: Sample, label: Array) -> Sample:
        return sample(ddim(denoiser(lambda x, level: _predict_digit(params, x, level, label))), key, x, grid)

    return jax.vmap(one)(x, labels)


@jax.jit
def _scan_digits(params: Params, x: Sample, labels: Array, conditions: Array) -> Sample:
    def one(x: Sample, label: Array) -> Sample:
        return jax.lax.scan(lambda x, c: (_call_digits(params, x, c, label), None), x, conditions)[0]

    return jax.vmap(one)(x, labels)


def against_bare_network(sizes: Any, seed: int) -> Sides:
    """Set DDIM against a scan that does nothing but call the same network as often."""
    params, key, grid = _digits_params(seed), jax.random.key(seed), karras_grid(sizes.digits_steps, sigma_max=20.0)
    x = jnp.asarray(_noise(seed, sizes.digits_batch_size)).reshape(-1, 8, 8)
    labels = jnp.arange(len(x)) % 10
    conditions = jnp.asarray(0.25 * np.log(np.asarray(grid.sigma)[:-1]), jnp.float32)
    return Sides(
        lambda: np.asarray(_draw_digits(params, key, x, labels, grid)),
        lambda: np.asarray(_scan_digits(params, x, labels, conditions)),
    )


@partial(jax.jit, static_argnums=0)
def _draw_guided(
    together: bool, params: Params, key: PRNGKey, x: Sample, labels: Array, grid: Level, scale: Array
) -> Sample:
    def one(x: Sample, label: Array) -> Sample:
        null = jnp.asarray(10)
        predict = partial(_predict_digit, params)
        if together:
            guided = classifier_free(predict, label, null, scale)
        else:
            guided = guide(partial(predict, label=label), partial(predict, label=null), scale)
        return sample(ddim(denoiser(guided)), key, x, grid)

    return jax.vmap(one)(x, labels)


def guidance_in_one_call(sizes: Any, seed: int) -> Sides:
    """Set guidance through one call of the network over both conditions against guidance through two calls."""
    params, key, grid = _digits_params(seed), jax.random.key(seed), karras_grid(sizes.digits_steps, sigma_max=20.0)
    x = jnp.asarray(_noise(seed, sizes.guided_batch_size, 20.0)).reshape(-1, 8, 8)
    operands = params, key, x, jnp.arange(len(x)) % 10, grid, jnp.asarray(2.0)
    return Sides(
        lambda: np.asarray(_draw_guided(True, *operands)),
        lambda: np.asarray(_draw_guided(False, *operands)),
    )


# What compiles anew.


def count_compilations(seed: int, steps: int) -> dict[str, int]:
    """Return, for each thing that a user sweeps, how often the sampler was traced once it had changed too."""
    traces = []

    @jax.jit
    def draw(key: PRNGKey, x: Sample, grid: Level, eta: Array, scale: Array, interval: tuple[Array, Array]) -> Sample:
        traces.append(None)

        def predict(x: Sample, level: Level, shift: Array) -> Prediction:
            prediction = _predict_gaussian((), x - level.alpha * shift, level)
            return prediction._replace(x0=prediction.x0 + shift)

        def guided(x: Sample, level: Level) -> Prediction:
            return classifier_free(predict, jnp.ones(()), jnp.zeros(()), interval_scale(scale, *interval))(x, level)

        return sample(ddim(denoiser(guided), eta), key, x, grid)

    given: dict[str, Any] = {
        "key": jax.random.key(seed),
        "x": _noise(seed, 1)[0],
        "grid": karras_grid(steps),
        "eta": 0.0,
        "scale": 1.0,
        "interval": (0.0, 100.0),
    }
    changes = {
        "guidance scale": {"scale": 3.0},
        "eta": {"eta": 0.5},
        "guidance interval": {"interval": (0.3, 5.0)},
        "grid": {"grid": karras_grid(steps, sigma_max=20.0, rho=5.0)},
        "seed": {"key": jax.random.key(seed + 1)},
    }
    draw(**given)
    found = {}
    for name, change in changes.items():
        draw(**{**given, **change})
        found[name] = len(traces)
    return found
