"""Numbers that the claims are held against, from formulas that do not use the library.

Problems: data N(0, 1) under noise of variance 25 t, and two mixtures of two Gaussians on a line. W(t) = 1 + 25 t is the
variance of the first at time t.
"""

import math

VARIANCE_Q = 25.0
"""sigma_q^2 of the Gaussian problem."""

KERNEL_MIXTURE = ((0.3, 0.7), (-1.0, 1.5), (0.7, 0.5))
"""Weights, means and standard deviations of the law whose reverse kernels are measured."""
KERNEL_POINT = 0.4
"""Where they are measured."""
KERNEL_KL = {0.1: 1.2887177325e-3, 0.05: 9.533830e-5}
"""KL of the Gaussian of the exact mean and variance sigma^2 to the reverse kernel, by quadrature with 40 digits."""
KERNEL_MEAN_ERROR = {0.1: 3.140e-4, 0.05: 1.847e-5}
"""Error of the mean z + sigma^2 (log p)'(z) with the score of the earlier time, by the same quadrature."""

PATH_KL = {10: 0.798124, 100: 0.0626806, 1000: 0.00603562}
"""Sum over the steps of 1/2 (q - 1 - ln q), q = W(t) / W(t - dt): what DDPM's paths lack at N steps."""
MARGINAL_KL = {10: 0.420344, 100: 0.00418999, 1000: 3.92705e-5}
"""1/2 (V - 1 - ln V) with V the variance of DDPM's samples at N steps from N(0, W(1))."""

TARGET_RATIO = 662.5
"""(t / dt) W(t - dt) / s^2 at s = 1, t = .5, dt = .01: how much noisier x_{t-dt} is as a target than x_0."""
FORGETTING = 1.0 / math.sqrt(1.0 + VARIANCE_Q)
"""corr(x_1, x_0) of the reverse SDE, that of the forward process: 1 / sqrt(W(1))."""

FLOW_START = 3.0
FLOW_END = 3.0 * math.sqrt((1.0 + VARIANCE_Q * 0.09) / (1.0 + VARIANCE_Q))
"""y_.09 = z_.3 = 1.06066: the flow of a Gaussian scales a point as its standard deviation, here sqrt(W(.09) / W(1))."""
PRINTED_END = {"noise sigma_q sqrt(t)": 1.557892, "noise sigma_q t": 1.610804}
"""z_.3 along dz/dt = -E[x_0 - z | z], the velocity as Lemma 4 prints it, under either reading of the noise."""

PRESERVING_DEVIATION = 0.55436
"""Largest distance of variance-preserving DDIM (beta from .1 to 20) on `KERNEL_MIXTURE` to the nearest slice of the
linear flow of the same coupling, from the normal quantiles of (i - 1/2) / 64: both ODEs solved by DOP853 to 1e-10."""
ON_PRESERVING_DEVIATION = (
    "An earlier derivation gave .5364 without saying which quantiles; it is not reproduced: .5544 for (i - 1/2) / 64, "
    ".5375 for median ranks (i - .3) / 64.4, .5148 for i / 65."
)


def mixture_curvature(x: float) -> float:
    """Return the second derivative of the log-density of `KERNEL_MIXTURE` at `x`: p''/p - (p'/p)^2."""
    density = slope = bend = 0.0
    for weight, mean, std in zip(*KERNEL_MIXTURE, strict=True):
        offset = (x - mean) / std
        bump = weight / std * math.exp(-0.5 * offset**2)
        density, slope, bend = density + bump, slope - offset / std * bump, bend + (offset**2 - 1.0) / std**2 * bump
    return bend / density - (slope / density) ** 2


def gaussian_kl(variance: float) -> float:
    """Return KL(N(0, v) || N(0, 1)) in nats."""
    return 0.5 * (variance - 1.0 - math.log(variance))
