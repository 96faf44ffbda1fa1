# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Diffusion, step by step
#
# Add noise to data in many small steps, $x_{t+\Delta t} = x_t + N(0, \sigma_q^2 \Delta t)$, and learn to undo one step.
# If the step is small, the law of the previous point given the present one is nearly a Gaussian of known variance, so
# that its *mean* is all there is to learn: a regression. That is DDPM. DDIM goes without the noise, and is a flow that
# carries one law onto another; flow matching learns such a flow between any two laws. This notebook follows
# *Step-by-Step Diffusion: An Elementary Tutorial* (Nakkiran, Bradley, Zhou & Advani 2024) through points, mixtures and
# spirals. Runs on TPU, GPU and CPU.

# %%
# 1. Install jaxgen where it cannot be imported. A jax that is there already stays if jaxgen supports it.
import importlib.util
import subprocess
import sys

SOURCE = ".."  # a folder, a wheel, or an address such as "git+https://host/owner/jaxgen"
if importlib.util.find_spec("jaxgen") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)

# %%
# 2. One mesh over every device. Training splits its draws over it, and sampling its samples.
import jax

from jaxgen.training import make_mesh

mesh = make_mesh({"data": jax.device_count()})
print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")

# %%
# 3. The one size: "ci" takes half a minute, "small" a minute, "full" trains as long as the experiment does.
import os

SIZE = os.environ.get("JAXGEN_NOTEBOOK_SIZE", "small")
steps = {"ci": 1000, "small": 8000, "full": 20_000}[SIZE]

# %% [markdown]
# ## One reverse step is nearly Gaussian
#
# Given $x_t = z$, the previous point has the law $p(x \mid z) \propto p(x)\, e^{-(z - x)^2 / 2\sigma^2}$, with
# $\sigma = \sigma_q \sqrt{\Delta t}$. Lemma 1: it is $N(z + \sigma^2 \nabla \log p_t(z),\ \sigma^2)$ up to a divergence
# of order $\sigma^4$.

# %%
# %matplotlib inline
import jax.numpy as jnp
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from experiments import plots
from jaxgen.diffusion import diagonal_mixture, reverse_kernel_kl, reverse_log_density, reverse_mean

law = diagonal_mixture([0.3, 0.7], [[-1.0], [1.5]], [[0.49], [0.25]])
z = jnp.array([0.4])


@jax.jit
def one_step(sigma):
    mean = reverse_mean(law, z, sigma)
    x = mean + sigma * jnp.linspace(-4.0, 4.0, 301)
    kernel = jnp.exp(jax.vmap(lambda x: reverse_log_density(law, x, z, sigma))(x[:, None]))
    return x, kernel, jax.scipy.stats.norm.pdf(x, mean, sigma), reverse_kernel_kl(law, z, sigma, mean)


with plots.style():
    figure = Figure(figsize=(8.0, 2.4), dpi=100)
    for axes, sigma in zip(figure.subplots(1, 3), (1.0, 0.5, 0.25), strict=True):
        x, kernel, gaussian, kl = one_step(jnp.asarray(sigma))
        axes.fill_between(x, kernel, alpha=0.3)
        axes.plot(x, gaussian, "--", color=plots.PALETTE[1])
        axes.set(title=f"sigma = {sigma:g}, KL = {kl:.4f}", xlabel="previous point")
display(figure)

# %% [markdown]
# **Change one thing:** move `z` from the valley between the bumps to the top of one, `jnp.array([1.5])`. The
# coefficient of $\sigma^4$ is a quarter of the squared curvature of $\log p$, which is 16 in the valley and 4 here:
# what the Gaussian lacks is that curvature.

# %% [markdown]
# ## DDPM and DDIM, with a denoiser that is exact
#
# Both need only $E[x_0 \mid x_t]$, since $E[x_{t-\Delta t} - x_t \mid x_t] = \frac{\Delta t}{t} E[x_0 - x_t \mid x_t]$.
# DDPM steps to that mean and adds noise (pseudocode 2). DDIM goes the share
# $\lambda = \sqrt t / (\sqrt t + \sqrt{t - \Delta t})$ of the way, without (pseudocode 3).

# %%
from jaxgen.diffusion import (
    Tutorial,
    denoiser,
    predict_from_points,
    trajectory,
    tutorial_ddim,
    tutorial_ddpm,
    uniform_grid,
)

targets = jnp.array([[-1.0], [1.0]])
grid = uniform_grid(Tutorial(sigma_q=2.0), steps=100)


@jax.jit
def ways(starts, keys):
    model = denoiser(lambda x, level: predict_from_points(targets, x, level))
    return [
        jax.vmap(lambda key, x, kernel=kernel: trajectory(kernel(model), key, x, grid)[0])(keys, starts)[..., 0]
        for kernel in (tutorial_ddpm, tutorial_ddim)
    ]


starts = jnp.linspace(-4.0, 4.0, 16)[:, None]
with plots.style():
    figure = Figure(figsize=(8.0, 2.6), dpi=100)
    drawn = zip(figure.subplots(1, 2, sharey=True), ways(starts, jax.random.split(jax.random.key(0), 16)), strict=True)
    for (axes, curves), name in zip(drawn, ("DDPM", "DDIM"), strict=True):
        axes.plot(grid.time, curves.T, linewidth=0.8, color=plots.PALETTE[0])
        axes.set(title=name, xlabel="time, from noise to data", xlim=(1.0, 0.0))
display(figure)

# %% [markdown]
# **Change one thing:** `steps=5`. DDIM ends short of the points where it began in the middle; DDPM, whose last step
# adds noise of variance $\sigma_q^2 \Delta t$ too, ends in clouds of width $2 / \sqrt 5$ around them.

# %% [markdown]
# ## A network that sees 10 points of a spiral, and one that sees 40
#
# In place of the exact denoiser, three layers of 128 features learn it: $\|g(x_t, t) - x_0\|^2$ at random times
# (pseudocode 6). Both networks train at once, as one stacked state.

# %%
from experiments.stacked import Rate, StackedUpdate, initial_state
from experiments.step_by_step import data
from experiments.step_by_step.networks import Points, denoiser_loss, flow_loss
from jaxgen.models import MLP, MLPConfig
from jaxgen.training import fit, in_memory

model, rate = MLP(MLPConfig(width=128, layers=3)), Rate(np.float32(1e-3), np.float32(steps))
points, counts = data.training_sets((10, 40), 1, seed=0)


def train(loss, given, count, draws):
    batches = in_memory(np.arange(draws, dtype=np.int32), draws, jax.random.key(0), shuffle=False, mesh=mesh)
    losses = []
    state = fit(
        StackedUpdate(model, loss),
        initial_state(model, jax.random.key(1), count),
        (rate, given),
        batches,
        steps=steps,
        mesh=mesh,
        on_metrics=lambda step, metrics: losses.append(metrics["loss"].mean()),
    )
    print(f"{steps} steps: loss {np.mean(losses[:50]):.3f} at first, {np.mean(losses[-50:]):.3f} at last")
    return state.params


denoisers = train(denoiser_loss, Points(points[0], counts[0], np.ones(2, np.float32)), count=2, draws=64)

# %%
# Sample both: every sample is one of each network, from one noise.
from jaxgen.diffusion import from_x0, prior, sample, sample_many

spiral_grid = jax.tree.map(np.float32, uniform_grid(Tutorial(sigma_q=1.0), steps=100))


def draw(key, condition, params, grid):
    def by(params):
        def predict(x, level):
            return from_x0(x, level, model.apply({"params": params}, x, level.time))

        x = prior(key, (2,), jax.tree.map(lambda leaf: leaf[0], grid))
        return sample(tutorial_ddim(denoiser(predict)), key, x, grid)

    return jax.vmap(by)(params)


samples = sample_many(draw, jax.random.key(2), 800, denoisers, spiral_grid, block_size=400, mesh=mesh)
curve, fresh = data.spiral(np.linspace(0.0, 1.0, 400)), data.spiral_samples(1, 20_000)
with plots.style():
    figure = Figure(figsize=(6.4, 3.2), dpi=100)
    for index, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        known = points[0, index, : counts[0, index]]
        near, expected = ((data.distances(of, known) < 0.05).mean() for of in (samples[:, index], fresh))
        axes.plot(*curve.T, color="0.7")
        axes.plot(*samples[:, index].T, ".", color=plots.PALETTE[2], markersize=2)
        axes.plot(*known.T, "k*", markersize=5)
        axes.set(
            title=f"{len(known)} points: at one of them are\n{near:.0%} of samples, {expected:.0%} of the spiral",
            aspect="equal",
        )
display(figure)

# %% [markdown]
# With 10 points the network comes back to them, several times as often as the spiral passes by, and the more exactly
# the longer it trains; with 40 it fills more of the curve in between. How much it remembers of these depends on how
# long it trains: after the 20,000 steps of `python -m experiments step-by-step` half to two thirds of its samples are
# at a training point, where a third of the spiral is. The best function on its training set would remember all points
# in both cases: what generalises here is that a small network does not reach it.
#
# **Change one thing:** `sigma_q=5.0` in the grid, and `5 * np.ones(2, np.float32)` in `Points`. Training now spends its
# time at noise that hides the spiral, the last step starts at half a standard deviation of noise, and the samples
# blur.

# %% [markdown]
# ## Any base will do: from an annulus to the spiral
#
# Pair points of two laws at random, join the partners by straight lines, and learn the mean velocity of all lines
# through a point: $\|f(x_t, t) - (x_0 - x_1)\|^2$ with $x_t = t x_1 + (1 - t) x_0$ (pseudocode 4). Following $f$ from
# $t = 1$ to $0$ carries one law onto the other (pseudocode 5). Nothing in it is Gaussian.

# %%
flows = train(flow_loss, data.flow_ends(1, 5000, seed=0), count=1, draws=256)

# %%
from jaxgen.diffusion import flow_matching


def follow(key, start, params, times):
    params = jax.tree.map(lambda leaf: leaf[0], params)
    return flow_matching.trace_flow(lambda x, t: model.apply({"params": params}, x, t), start, times)


count = 100
times = np.linspace(1.0, 0.0, count + 1, dtype=np.float32)
shown = (1.0, 0.75, 0.5, 0.2, 0.1, 0.0)
start = data.annulus_samples(9, 1600)
moved = sample_many(follow, jax.random.key(3), 1600, flows, times, conditions=start, block_size=400, mesh=mesh)
with plots.style():
    figure = Figure(figsize=(9.6, 1.9), dpi=100)
    for axes, at in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        axes.plot(*moved[:, round(count * (1 - at))].T, ".", markersize=1)
        axes.set(title=f"t = {at:g}", aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
display(figure)

# %%
# How far is it from the spiral, against fresh points of the spiral?
from jaxgen.statistics import sliced_wasserstein2

real, other = data.spiral_samples(1, 1600), data.spiral_samples(2, 1600)
for name, cloud in (("annulus", start), ("flow", moved[:, -1]), ("fresh points", other)):
    print(f"{name:13} sliced W2 to the spiral {float(sliced_wasserstein2(jax.random.key(4), cloud, real)):.3f}")

# %% [markdown]
# **Change one thing:** `count = 2`, two steps of Euler. The lines between partners were straight, but the flow that
# averages them is curved, and two steps cut its corners.
#
# Every claim of the tutorial, with its numbers: `python -m experiments step-by-step`.
