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
# # One model of several sources, or one model each?
#
# Mixing data sets can help a generative model or hurt it. For the maximum likelihood of conditional models the answer
# is a matter of counting (Wang et al. 2025): for sources that have a share $\beta$ of their parameters in common the
# bound on the error of one model is $\sqrt{1 - \frac{K-1}{K}\beta}$ times that of $K$ separate models. For Gaussians
# the expected errors themselves are known exactly, so it can be seen how near to that their ratio comes, and where
# sharing turns harmful; and the similarity, which no data set comes labelled with, can be read off a small experiment.
# Runs on TPU, GPU and CPU.

# %%
# 1. Install jaxgen where it cannot be imported. A jax that is there already stays if jaxgen supports it.
import importlib.util
import subprocess
import sys

SOURCE = ".."  # a folder, a wheel, or an address such as "git+https://host/owner/jaxgen"
if importlib.util.find_spec("jaxgen") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)

# %%
# 2. One mesh over every device: the data sets are split over it.
import jax

from jaxgen.training import make_mesh, shard_batch

mesh = make_mesh({"data": jax.device_count()})
print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")

# %%
# 3. The one size: "ci" takes half a minute.
import os

SIZE = os.environ.get("JAXGEN_NOTEBOOK_SIZE", "small")
replicates = {"ci": 512, "small": 2_048, "full": 16_384}[SIZE]

# %% [markdown]
# ## Sources with a part of their own and a part in common
#
# Source $k$ is a Gaussian of unit covariance in ten dimensions. Its mean is $k$ in its own coordinates and 0 in those
# that all sources share. $n$ samples fall on the sources at random. Without sharing a source is fitted to its own
# samples; with sharing the mean of a shared coordinate is that of all $n$. The error is the total variation between
# the fitted law and the true one, averaged over the sources.

# %%
# %matplotlib inline

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxgen.statistics.conditional_mle import gaussian_mle, sample_sources
from jaxgen.statistics.sharing import james_stein_means
from jaxgen.statistics.total_variation import tv_gaussian

SAMPLES, DIM = 500, 10
keys = shard_batch(jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(replicates)), mesh)


def sources(count, shared):
    """Return the means of the sources and which coordinates they share."""
    mask = np.arange(DIM) >= DIM - shared
    return np.where(mask, 0.0, 1.0 + np.arange(count)[:, None]).astype(np.float32), mask


@jax.jit
def distances(keys, means, mask):
    """Return how far fitted means lie from the truth, [replicates, arms, sources]: separate, shared, and shrunk."""

    def one(key):
        x, y = sample_sources(key, means, jnp.full(len(means), 1 / len(means)), SAMPLES)
        separate, shared = (gaussian_mle(x, y, len(means), mask, shared=shared) for shared in (False, True))
        shrunk = james_stein_means(separate.means, separate.counts, mask)
        return jnp.linalg.norm(jnp.stack([separate.means, shared.means, shrunk]) - means, axis=-1)

    return jax.vmap(one)(keys)


def errors(count, shared):
    """Return the average total variation of each data set, [replicates, 2]: separate models, shared model."""
    return np.asarray(tv_gaussian(distances(keys, *sources(count, shared))).mean(axis=-1))[:, :2]


found = errors(5, 5)
print(f"5 sources, half in common: separate {found[:, 0].mean():.4f}, shared {found[:, 1].mean():.4f}")

# %% [markdown]
# ## The exact error, and the ratio
#
# The expectation of these errors is an integral over Student's t: no simulation enters the lines below. Their ratio is
# nearly that of the bounds, dashed. More sources and more in common mean more gain. **One thing to change:** the number
# of samples. The ratio stays.

# %%
from jaxgen.statistics.expected_tv import expected_average_tv

counts, shares = (3, 5, 10, 15), (0, 3, 5, 7, 10)
by_count = {count: errors(count, 5) for count in counts}
by_share = {share: errors(5, share) for share in shares}


def exact(count, share):
    p_y = np.full(count, 1 / count, np.float32)
    return [float(expected_average_tv(SAMPLES, p_y, DIM - share, share, shared=shared)) for shared in (False, True)]


def panel(axes, label, along, settings, measured):
    """Draw the ratio along one sweep: exact, measured with two standard errors, and that of the bounds."""
    single, multi = np.array([exact(*setting) for setting in settings]).T
    axes.plot(along, multi / single, "C0", label="exact")
    bounds = [np.sqrt(1 - (count - 1) / count * share / DIM) for count, share in settings]
    axes.plot(along, bounds, "--", color="C2", label="bounds")
    ratios = [of[:, 1].mean() / of[:, 0].mean() for of in measured]
    spread = [(of[:, 1] - r * of[:, 0]).std() / of[:, 0].mean() for of, r in zip(measured, ratios, strict=True)]
    axes.errorbar(along, ratios, 2 * np.array(spread) / np.sqrt(replicates), fmt="oC1", capsize=3, label="measured")
    axes.set(xlabel=label)
    axes.legend()


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
panel(left, "number of sources", counts, [(count, 5) for count in counts], by_count.values())
panel(right, "similarity", np.array(shares) / DIM, [(5, share) for share in shares], by_share.values())
left.set_ylabel("error, shared / separate")
plt.show()

# %% [markdown]
# ## Where sharing hurts
#
# Now let the sources differ in the coordinates that are taken to be shared, with variance $v$. One mean for all is then
# wrong for ever, and sharing pays only up to $v \approx (K-1)/n$. Shrinking the separate means towards the common one,
# by as much as they are seen to differ (James & Stein 1961), needs no such number: for four or more sources that are
# equally frequent, as here, it is no worse than separate means at any $v$. A rare source that lies apart from frequent
# ones can lose by it. **One thing to change:** how many of the coordinates are taken to be shared.

# %%
from jaxgen.statistics.sharing import crossover_spread, squared_error

spreads = np.array([0.0, 0.002, 0.004, 0.008, 0.012, 0.016, 0.02])
means, mask = sources(5, 5)
pattern = (np.arange(5) - 2.0)[:, None] / np.sqrt(2) * mask  # variance 1 over the sources
squared = [(distances(keys, np.float32(means + np.sqrt(v) * pattern), mask) ** 2).mean(axis=(0, 2)) for v in spreads]
figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for arm, (name, colour) in enumerate({"separate": "C1", "shared": "C0", "shrunk": "C2"}.items()):
    axes.plot(spreads, [of[arm] for of in squared], "o--" if name == "shrunk" else "o", color=colour, label=name)
for shared, colour in ((False, "C1"), (True, "C0")):
    axes.plot(spreads, [squared_error(SAMPLES, 5, 5, 5, v, shared=shared) for v in spreads], colour)
axes.axvline(crossover_spread(SAMPLES, 5), color="0.6", linestyle=":")
axes.set(xlabel="variance of the sources' means where they are taken to be one", ylabel="squared error of the means")
axes.legend()
plt.show()

# %% [markdown]
# ## How similar are they?
#
# Nobody knows the $\beta$ of real data. But a shared and a separate fit of a few sources give their ratio of errors,
# and solving for $\beta$ tells what to expect of many, before anything is trained on them. **One thing to change:** the
# number of coordinates in common.

# %%
from jaxgen.statistics.source_similarity import estimated_similarity, predicted_ratio

SHARED = 5
few = errors(3, SHARED)
similarity = estimated_similarity(few[:, 1], few[:, 0], 3, seed=0, draws=999)
print(f"similarity {similarity.value:.3f}, 95 % interval {similarity.lower:.3f} to {similarity.upper:.3f}")
print(f"{SHARED} of {DIM} coordinates are shared")
for count in (10, 15):
    single, multi = errors(count, SHARED).mean(axis=0)
    print(f"{count} sources: predicted ratio {predicted_ratio(similarity.value, count):.3f}, then {multi / single:.3f}")
