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
# # A transformer that learns to learn, in closed form
#
# A linear causal self-attention layer reads sequences $x_{t+1} = W x_t$, each with a $W$ of its own, and is trained to
# predict the next token. What it becomes is known exactly (Zheng et al. 2024): two numbers grow, $W_{32} \to aI$ and
# $W_{12} \to bI$, everything else stays at zero, and the trained layer *is* one step of gradient descent on the
# least-squares problem of its context. It is an optimiser that was found by an optimiser, and a weak one. Every curve
# of training is predicted before it is measured. Runs on TPU, GPU and CPU.

# %%
# 1. Install jaxgen where it cannot be imported. A jax that is there already stays if jaxgen supports it.
import importlib.util
import subprocess
import sys

SOURCE = ".."  # a folder, a wheel, or an address such as "git+https://host/owner/jaxgen"
if importlib.util.find_spec("jaxgen") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)

# %%
# 2. One mesh over every device: the sequences are split over it.
import jax

from jaxgen.training import make_mesh, shard_batch

mesh = make_mesh({"data": jax.device_count()})
print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")

# %%
# 3. The one size: "ci" takes half a minute.
import os

SIZE = os.environ.get("JAXGEN_NOTEBOOK_SIZE", "small")
count, length, dimension = {"ci": (512, 20, 3), "small": (2_048, 50, 5), "full": (10_240, 100, 5)}[SIZE]

# %% [markdown]
# ## Sequences, a layer, a loss
#
# $W = \mathrm{diag}(e^{i\theta_1}, \dots)$ with random phases, the first token from a law that we choose. Complex
# numbers are kept as pairs of real ones. The loss is half a squared distance, summed over positions.

# %%
# %matplotlib inline
import functools

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxgen.flows import gaussian_start, gradient_descent, sequence_parts
from jaxgen.models import autoregressive_loss_real, diagonal_params

STARTS = [(0.1, 0.1), (0.5, 1.5), (1.0, 1.0)]


def sequences(law, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    parts = jax.jit(jax.vmap(lambda key: sequence_parts(key, law, length, dimension)))(keys)
    return shard_batch(parts, mesh)


@functools.partial(jax.jit, static_argnames="epochs")
def train(start, x, step_size, epochs=150):
    """Full-batch gradient descent on all parameters of the layer; the whole trajectory."""

    def loss(params):
        return autoregressive_loss_real(params, *x)

    return gradient_descent(loss, start, optax.sgd(step_size), epochs).observed


x = sequences(gaussian_start())

# %% [markdown]
# ## Predict, then measure
#
# With moments $\kappa_1 = E x_j^4$, $\kappa_2 = E x_j^6$, $\kappa_3 = \sum_r E x_j^2 x_r^4$ and
# $S_T = \sum_{t=2}^{T-1} \frac{1}{t-1}$, the two numbers follow $\dot a = b\,(c_2 - c_1 ab)$,
# $\dot b = a\,(c_2 - c_1 ab)$, where $c_1 = (T-2)\kappa_2 + S_T\kappa_3$ and $c_2 = (T-2)\kappa_1$. The product $ab$
# has a closed form (`flow_product`) and ends in $c_2 / c_1$. Points are the layer, trained on samples.

# %%
from jaxgen.flows import flow_product, kappas, limit_product, rates

c1, c2 = rates(kappas(gaussian_start(), dimension), length)
step_size = 0.1 / float(c2)
epochs = np.arange(0, 151, 5)
fig, axes = plt.subplots(figsize=(6, 3.5))
trained = {}
for start in STARTS:
    trained[start] = train(diagonal_params(*start, dimension), x, step_size)
    kq, pv = trained[start]["kq"][:, dimension:, :dimension], trained[start]["pv"][:, :, :dimension]
    products = jnp.einsum("ejj,ejj->e", kq, pv) / dimension
    exact = flow_product(*start, c1, c2, step_size * epochs)
    (line,) = axes.plot(epochs, exact, label=f"start {start}")
    axes.plot(epochs, products[epochs], "o", color=line.get_color(), markersize=3)
axes.axhline(float(limit_product(gaussian_start(), length, dimension)), color="0.6", linewidth=0.8)
axes.set(xlabel="epoch", ylabel="ab", title="lines: closed form of the flow; points: the trained layer", ylim=(0, 0.5))
axes.legend()
plt.show()

# %% [markdown]
# ## The trained layer is one gradient step
#
# Its prediction is that of one step of gradient descent from $W = 0$ on
# $\frac{1}{2}\sum_{i<t}\|x_{i+1} - Wx_i\|^2$, of size $ab / (t - 1)$.

# %%
from jaxgen.flows import start_at
from jaxgen.models import attend_real, gradient_steps_predict

limit = float(limit_product(gaussian_start(), length, dimension))
root = limit**0.5
layer = attend_real(diagonal_params(root, root, dimension), *(part[:64] for part in x))
# The step itself is written for complex sequences; it runs on the CPU, which has them everywhere.
with jax.default_device(jax.devices("cpu")[0]):
    z = np.asarray(x[0][:64]) + 1j * np.asarray(x[1][:64])
    step = np.asarray(gradient_steps_predict(z, jnp.array([limit])))
gap = max(np.abs(np.asarray(layer[0]) - step.real).max(), np.abs(np.asarray(layer[1]) - step.imag).max())
print(f"largest difference between layer and gradient step: {gap:.1e}, predictions up to {np.abs(step).max():.1f}")
assert gap < 1e-4 * np.abs(step).max()

# %% [markdown]
# ## How much does one step know?
#
# It explains $R^2 = ab\,\kappa_1 / m_2$ of the next token. For long sequences that is
# $\kappa_1^2 / (\kappa_2 m_2) \le 1$, with equality exactly where $|x_j|$ is 0 or one number. So Gaussian tokens fail,
# and tokens with one coordinate $\pm c$ are recovered exactly.

# %%
from jaxgen.flows import (
    explained,
    explained_at_infinity,
    laplace_start,
    one_hot_start,
    rademacher_start,
    spiked_start,
    uniform_start,
)

laws = {
    "Gaussian": gaussian_start(),
    "Laplace": laplace_start(),
    "uniform": uniform_start(),
    "Rademacher": rademacher_start(),
    "spiked": spiked_start(),
    "one-hot": one_hot_start(),
}
for name, law in laws.items():
    moments = kappas(law, dimension)
    at_t, beyond = float(explained(moments, length)), float(explained_at_infinity(moments))
    print(f"{name:>10}: R^2 = {at_t:.3f} at T = {length}, {beyond:.3f} as T grows")

# %% [markdown]
# ## Change one thing, and see what breaks
#
# The theorem wants more than coordinates of mean zero. Tokens that are 2 with probability 1/3 and else -1 have mean
# zero, but $E x_r^3 x_s^3 \ne 0$: off-diagonal gradients appear, and $W_{32}$, $W_{12}$ become dense. Here the loss of
# the whole population is followed, exactly, with no sample: `population_correlations` knows it as a quartic polynomial.
# All-ones tokens go further still. Try a law of your own in `laws`, or a longer sequence.

# %%
from jaxgen.flows import Ones, Status, describe, gradient_flow, population_correlations, quartic_loss, skewed_start

fig, grid = plt.subplots(1, 3, figsize=(9, 3))
for axes, (name, law) in zip(
    grid, {"Gaussian": gaussian_start(), "skewed": skewed_start(), "ones": Ones()}.items(), strict=True
):
    correlations = population_correlations(law, 5, dimension)
    flow = jax.jit(lambda c: gradient_flow(lambda p: quartic_loss(p, c), start_at(0.3, 0.3, dimension), 100.0))(
        correlations
    )
    w32 = np.asarray(flow.params["kq"])
    shown = axes.imshow(w32, cmap="RdBu_r", vmin=-np.abs(w32).max(), vmax=np.abs(w32).max())
    axes.set(title=f"$W_{{32}}$, {name}: {describe(flow)}", xticks=[], yticks=[])
    share = np.abs(w32[0, 1] / w32[0, 0])
    print(f"{name}: |off-diagonal| / diagonal = {share:.4f}")
plt.show()

# %% [markdown]
# ## Where the theorem stops: a saddle
#
# From $a_0 = -b_0$ the flow runs into the saddle $(0, 0)$ and the layer learns nothing. A line of starts has measure
# zero, but a sentence that says "every" does not leave it out.

# %%
correlations = population_correlations(gaussian_start(), 5, dimension)
c1, c2 = rates(kappas(gaussian_start(), dimension), 5)


@jax.jit
@jax.vmap
def follow(a, b):
    """The flow from W32 = a I, W12 = b I in the time c2 tau, until nothing moves any more."""

    def loss(params):
        return quartic_loss(params, correlations) / c2

    return gradient_flow(loss, start_at(a, b, dimension), 50.0, stationary=1e-3)


starts = [(0.3, 0.2), (0.3, -0.2), (0.3, -0.3)]
flows = follow(*jnp.array(starts).T)
products = flows.params["kq"][:, 0, 0] * flows.params["pv"][:, 0, 0]
for start, status, product, loss in zip(starts, flows.status, products, flows.loss * c2, strict=True):
    print(f"from {start}: {Status(int(status)).name.lower()}, ab = {product:.4f}, loss {loss:.4f}")
assert Status(int(flows.status[2])) == Status.SADDLE
