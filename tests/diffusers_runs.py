"""Running the schedulers of diffusers and the samplers of the library with one exact denoiser and the same noise.

The data are .3 N(-1, .7^2) + .7 N(1.5, .5^2); their posterior means are written here in numpy, in float64, and drive
the schedulers. The samplers of the library are driven by `predict_exactly`.
"""

import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgen.diffusion import (
    denoiser,
    discrete,
    gaussian_mixture,
    linear_betas,
    predict_exactly,
    scaled_linear_betas,
    timestep_grid,
)

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.7, 0.5])
STARTS = np.array([-1.3, 0.3, 2.1])
PUBLISHED = 1  # the start of the published values
STEPS = 10
# 1,000 levels. Stable Diffusion's: the square root of beta is linear; those of Ho et al. (2020): beta is.
TRAINING = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
ALPHA_BARS = {
    "scaled_linear": np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    "linear": np.cumprod(1.0 - np.linspace(0.0001, 0.02, 1000)),
}
ALPHA_BAR = ALPHA_BARS["scaled_linear"]
TRAILING = np.arange(999, 0, -100)


def alternating(n):
    """The noise of step n in the published values: 1, -1, 1, ..."""
    return (-1.0) ** n


def posterior_means(x, alpha, sigma):
    """E[x0 | x] and E[noise | x], each of the shape of x."""
    variances, offsets = alpha**2 * STDS**2 + sigma**2, x[..., None] - alpha * MEANS
    joint = WEIGHTS / np.sqrt(variances) * np.exp(-0.5 * offsets**2 / variances)
    shares = joint / joint.sum(-1, keepdims=True)
    x0 = (shares * (MEANS + alpha * STDS**2 / variances * offsets)).sum(-1)
    return x0, (shares * sigma / variances * offsets).sum(-1)


def levels_of(timesteps, final_alpha_bar=1.0, betas="scaled_linear"):
    """The library's levels of training timesteps in falling order, and the last level; float64."""
    made = {"scaled_linear": scaled_linear_betas, "linear": linear_betas}[betas]()
    return timestep_grid(discrete(made), timesteps, final_alpha_bar=final_alpha_bar)


def follow(scheduler, starts, network, noise=alternating, **options):
    """The loop that every pipeline of diffusers runs: network(scheduler, t, x) in numpy, noise(n) for step n."""
    x, count = torch.tensor(np.asarray(starts, np.float64))[:, None], iter(range(1_000_000))
    module = sys.modules[type(scheduler).__module__]

    def draw(shape, **_):
        return torch.full(shape, noise(next(count)), dtype=torch.float64)

    with mock.patch.object(module, "randn_tensor", draw, create=True):
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):  # where the step is found too; what it returns is not used
                scheduler.scale_model_input(x, t)
            output = network(scheduler, t, x[:, 0].numpy().astype(np.float64))
            x = scheduler.step(torch.tensor(output)[:, None], t, x, **options).prev_sample
    return x[:, 0].numpy().astype(np.float64)


def noise_network(scheduler, t, x):
    """Predict the noise at training timestep t from x = alpha x0 + sigma noise."""
    alpha_bar = ALPHA_BARS[scheduler.config.beta_schedule][int(t)]
    return posterior_means(x, np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar))[1]


def scaled_noise_network(scheduler, t, x):
    """The same from x / alpha, in which the Euler and Heun schedulers of diffusers work."""
    return noise_network(scheduler, t, np.sqrt(ALPHA_BAR[int(t)]) * x)


def through(build, starts, grid, noise=alternating):
    """Run a sampler of the library in float64 from each start, with noise(n) as the draw of its step n."""
    with jax.enable_x64(True):
        law = gaussian_mixture(WEIGHTS, MEANS[:, None], (STDS**2)[:, None, None])
        sampler = build(denoiser(lambda x, level: predict_exactly(law, x, level)))
        levels = jax.tree.map(jnp.asarray, grid)
        draws = jnp.array([noise(n) for n in range(len(grid.sigma) - 1)])
        key = jax.random.key(0)

        def step(state, inputs):
            draw, now, next = inputs
            # Traced once, so that every step draws its own element of the scan.
            with mock.patch.object(jax.random, "normal", lambda key, shape, dtype: jnp.full(shape, draw, dtype)):
                return sampler.step(key, state, now, next)[0], None

        def one(x):
            now, next = jax.tree.map(lambda leaf: leaf[:-1], levels), jax.tree.map(lambda leaf: leaf[1:], levels)
            return jax.lax.scan(step, sampler.init(x), (draws, now, next))[0].x

        return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(np.asarray(starts)[:, None], jnp.float64)))[:, 0]
