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
# # Guidance is a predictor-corrector
#
# Classifier-free guidance replaces the score of a condition, $s_c$, by $\gamma s_c + (1 - \gamma) s_u$. That is the
# score of $p(x|c)^\gamma p(x)^{1-\gamma}$ at every noise level, so it is often said that guidance samples this powered
# law. It does not: no diffusion leads from one of these laws to the next. On Gaussians everything can be written down,
# and DDIM, DDPM and the powered law turn out to be three different laws. What guided DDPM does do, as the steps shrink
# (Bradley & Nakkiran 2024), is this: one DDIM step of the *conditional* model, then one Langevin step towards the
# powered law with exponent $\gamma' = 2\gamma - 1$. Runs on TPU, GPU and CPU.

# %%
# 1. Install jaxgen where it cannot be imported. A jax that is there already stays if jaxgen supports it.
import importlib.util
import subprocess
import sys

SOURCE = ".."  # a folder, a wheel, or an address such as "git+https://host/owner/jaxgen"
if importlib.util.find_spec("jaxgen") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)

# %%
# 2. One mesh over every device: the samples are split over it.
import jax

from jaxgen.training import make_mesh

mesh = make_mesh({"data": jax.device_count()})
print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")

# %%
# 3. The one size: "ci" takes half a minute.
import os

SIZE = os.environ.get("JAXGEN_NOTEBOOK_SIZE", "small")
samples, steps = {"ci": (8_192, 100), "small": (32_768, 400), "full": (524_288, 1000)}[SIZE]

# %% [markdown]
# ## The samplers, in ten lines
#
# The problem is $c \sim N(0, 1)$ and $x|c \sim N(c, 1)$, so that $p(x) = N(0, 2)$; the condition is $c = 1$. A sampler
# is a kernel between two noise levels. `pcg` is the composition of two of them.

# %%
# %matplotlib inline
import functools

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxgen.diffusion import ddim, ddpm, denoiser, diagonal_mixture, guide, karras_grid, pcg, predict_exactly, sample

grid = jax.tree.map(jnp.float32, karras_grid(steps, sigma_max=1000.0))
conditional = diagonal_mixture([1.0], [[1.0]], [[1.0]])
unconditional = diagonal_mixture([1.0], [[0.0]], [[2.0]])


@functools.partial(jax.jit, static_argnames="build")
def draw(build, laws, scale, key, starts):
    """Draw as many samples as there are starts; `build` makes a sampler of the conditional and the guided model."""
    exact = [lambda x, level, law=law: predict_exactly(law, x, level) for law in laws]
    sampler = build(denoiser(exact[0]), denoiser(guide(*exact, scale)))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(starts)))
    return jax.vmap(lambda key, x: sample(sampler, key, x, grid))(keys, starts)[:, 0]


def by_ddim(conditional, guided):
    return ddim(guided)


def by_ddpm(conditional, guided):
    return ddpm(guided)


def by_pcg(conditional, guided):
    return pcg(conditional, guided, num_steps=1)


noise = grid.sigma[0] * jax.random.normal(jax.random.key(0), (samples, 1))
starts = jax.device_put(noise, jax.sharding.NamedSharding(mesh, jax.P("data")))
run = functools.partial(draw, laws=(conditional, unconditional), key=jax.random.key(1), starts=starts)

# %% [markdown]
# ## Three laws
#
# In the limit of small steps guided DDIM has the variance $2^{1-\gamma}$, guided DDPM
# $(2 - 2^{2-2\gamma})/(2\gamma - 1)$, and the powered law $2/(\gamma + 1)$. A guidance scale means nothing without its
# sampler.

# %%
scales = np.array([1.0, 1.5, 2.0, 3.0, 5.0])
measured = {
    name: [run(build, scale=scale) for scale in scales] for name, build in (("DDIM", by_ddim), ("DDPM", by_ddpm))
}
fine = np.linspace(1, 5, 100)
laws = {
    "DDIM": 2 ** (1 - fine),
    "DDPM": (2 - 2 ** (2 - 2 * fine)) / (2 * fine - 1),
    "powered": 2 / (fine + 1),
}
for (name, law), colour in zip(laws.items(), ("C0", "C1", "C2"), strict=True):
    plt.semilogy(fine, law, colour, label=f"{name}: law")
    if name in measured:
        plt.semilogy(scales, [of.var() for of in measured[name]], "o" + colour)
plt.xlabel("guidance scale")
plt.ylabel("variance")
plt.legend()
plt.show()

# %% [markdown]
# ## Guided DDPM is PCG
#
# At $\gamma = 2$ guided DDPM should be PCG at $\gamma' = 3$: both have the variance $7/12$. **One thing to change:**
# the scale of PCG. At $\gamma' = 2$, the scale that looks right, it is another law: that of guided DDPM at $3/2$.

# %%
print(f"guided DDPM at 2: variance {run(by_ddpm, scale=2.0).var():.4f}, in the limit {7 / 12:.4f}")
for scale in (3.0, 2.0):
    print(f"PCG at {scale:g}: variance {run(by_pcg, scale=scale).var():.4f}")
print(f"guided DDPM at 3/2: variance {run(by_ddpm, scale=1.5).var():.4f}, in the limit {3 / 4:.4f}")

# %% [markdown]
# ## Not a Gaussian any more
#
# Two clusters at $\pm 1$, conditioned on the right one: guidance pushes the mean far beyond the cluster and skews what
# it samples, DDIM more than DDPM. Neither is the powered law, which stays near the cluster.

# %%
right = diagonal_mixture([0.0, 1.0], [[-1.0], [1.0]], [[1.0], [1.0]])
both = diagonal_mixture([0.5, 0.5], [[-1.0], [1.0]], [[1.0], [1.0]])
clusters = functools.partial(run, laws=(right, both), scale=3.0)
x = np.linspace(-2, 6, 400)
condition = np.exp(-0.5 * (x - 1) ** 2) / np.sqrt(2 * np.pi)
powered = condition**3 / (0.5 * condition + 0.5 * np.exp(-0.5 * (x + 1) ** 2) / np.sqrt(2 * np.pi)) ** 2
plt.fill_between(x, condition, color="0.85", label="condition")
plt.plot(x, powered / (powered.sum() * (x[1] - x[0])), "C2", label="powered law, scale 3")
for name, build in (("DDIM", by_ddim), ("DDPM", by_ddpm)):
    plt.hist(
        np.asarray(clusters(build)), bins=150, range=(-2, 6), density=True, histtype="step", label=f"{name}, scale 3"
    )
plt.xlabel("x")
plt.ylabel("density")
plt.legend()
plt.show()

# %% [markdown]
# ## Digits that were never learnt
#
# One Gaussian for each handwritten digit has an exact score too. PCG over guidance scales (columns) and numbers of
# corrections (rows), all from one noise. **One thing to change:** the digit.

# %%
from experiments.digits import data
from experiments.plots import image_grid
from jaxgen.diffusion import gaussian_mixture

DIGIT = 3
digits = data.load()
classes = [data.class_gaussian(digits, label) for label in range(10)]
means, covariances = (np.stack(part) for part in zip(*classes, strict=True))
one = gaussian_mixture([1.0], means[[DIGIT]], covariances[[DIGIT]])
every = gaussian_mixture(np.full(10, 0.1), means, covariances)
digit_grid = jax.tree.map(jnp.float32, karras_grid(100))


@functools.partial(jax.jit, static_argnames="corrections")
def draw_digit(corrections, laws, scale, key):
    exact = [lambda x, level, law=law: predict_exactly(law, x, level) for law in laws]
    sampler = pcg(denoiser(exact[0]), denoiser(guide(*exact, scale)), corrections)
    return sample(sampler, key, 80.0 * jax.random.normal(key, (64,)), digit_grid)


columns = (1.0, 3.0, 5.0, 9.0, 15.0)
rows = [[draw_digit(k, (one, every), scale, jax.random.key(5)) for scale in columns] for k in (1, 3, 10)]
image_grid(
    np.clip(np.array(rows), -1, 1).reshape(3, len(columns), 8, 8),
    row_labels=[f"{k} corrections" for k in (1, 3, 10)],
    title=f"PCG at scales {', '.join(f'{scale:g}' for scale in columns)}",
    upscale=16,
)
