"""What the claims are compared with: numbers that were derived without this library.

The Gaussian problem has c ~ N(0, 1) and x | c ~ N(c, 1), so that p(x) = N(0, 2); the two clusters are N(-mu, 1) and
N(mu, 1) with equal shares, under the condition +mu; the three clusters N(-3, 1), N(0, 1) and N(3, 1) have equal shares,
and (.05, .15, .80) under the condition. For the clusters, DDIM is the map of the probability-flow ODE in the variable
sigma -> 1 / sqrt(1 + sigma^2), solved by DOP853 at 1e-12, and DDPM a Fokker-Planck equation solved by finite volumes
with Richardson's extrapolation, uncertain by 2e-6.
"""

from collections.abc import Mapping
from types import MappingProxyType

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
SHARP_SCALES = (5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
# Mean of guided DDIM under the condition c = 1:
# gamma 2^(-(1 + gamma) / 2) int_1/2^1 w^(-gamma / 2 - 1) (1 - w)^(-1/2) dw.
DDIM_MEANS: Mapping[float, float] = MappingProxyType(
    {
        1.0: 1.0,
        1.5: 1.3493488248172132,
        2.0: 1.6232252401402307,
        3.0: 2.0,
        5.0: 2.3333333333333333,
        7.5: 2.397926981882073,
    }
)
# (mu, gamma): (mean, variance, skewness) of guided DDIM, of guided DDPM, and of p(x | c)^gamma p(x)^(1 - gamma).
TWO_CLUSTERS: Mapping[tuple[float, float], tuple[tuple[float, float, float], ...]] = MappingProxyType(
    {
        (1.0, 2.0): (
            (1.612542427, 0.580269344, 0.3302),
            (1.481578, 0.672050, 0.2533),
            (1.289989272, 0.744280678, 0.2071),
        ),
        (1.0, 3.0): (
            (2.026889029, 0.427312624, 0.5198),
            (1.751652, 0.574920, 0.3467),
            (1.439531796, 0.644152483, 0.3123),
        ),
        (2.0, 3.0): (
            (3.049743395, 0.398039602, 0.6308),
            (2.478280, 0.745922, 0.2371),
            (2.102291048, 0.834442433, 0.2624),
        ),
        (2.0, 5.0): (
            (3.628265426, 0.304116178, 0.6701),
            (2.641214, 0.731132, 0.2387),
            (2.139363051, 0.790163272, 0.3229),
        ),
    }
)
# gamma: shares below -1.5, between, and above 1.5 under guided DDIM, guided DDPM and the powered law.
THREE_CLUSTERS: Mapping[float, tuple[tuple[float, float, float], ...]] = MappingProxyType(
    {
        2.0: ((0.004439, 0.016699, 0.978862), (0.003414, 0.030591, 0.965995), (0.005373, 0.066003, 0.928625)),
        3.0: ((0.000261, 0.000562, 0.999177), (0.000097, 0.002703, 0.997200), (0.000455, 0.023928, 0.975617)),
    }
)
# K corrections at scale 3: K int_0^1 z^(K - 1) ((1 + z) / 2)^(2 K) dz.
CORRECTED_VARIANCES: Mapping[int, float] = MappingProxyType(
    {1: 0.5833333333333333, 2: 0.5375, 5: 0.5134861882908759, 10: 0.5064909436723848}
)
# Two clusters with mu = 2, K corrections at scale 5: (mean, variance), by the Fokker-Planck equation; the last is the
# powered law, K = infinity.
TWO_CLUSTERS_CORRECTED: Mapping[int, tuple[float, float]] = MappingProxyType(
    {1: (2.478280, 0.745922), 2: (2.349, 0.7751), 3: (2.282, 0.7803), 5: (2.224, 0.7833)}
)
TWO_CLUSTERS_POWERED = (2.139363051, 0.790163272)
# Three clusters, K corrections at scale 3: (mean, variance); the last is the powered law.
THREE_CLUSTERS_CORRECTED: Mapping[int, tuple[float, float]] = MappingProxyType(
    {1: (3.23358, 1.08519), 2: (3.25151, 0.91802), 5: (3.21002, 0.86899), 20: (3.17591, 0.85594)}
)
THREE_CLUSTERS_POWERED = (3.16311, 0.85305)
# One Gaussian per digit, guidance of digit 3 with 400 steps from sigma = 80: norm of the mean's shift, and trace of the
# covariance, of one run of 3,000 samples each by a program without this library. The class has a trace of 9.688, and
# squares of shifts hold trace / 3,000 of noise. PCG is at the scale that is named.
CLASS_LABEL, CLASS_STEPS, CLASS_SAMPLES = 3, 400, 3000
CLASS_SHIFTS: Mapping[tuple[str, float], tuple[float, float]] = MappingProxyType(
    {
        ("DDIM", 2.0): (0.863, 9.42),
        ("DDPM", 2.0): (0.444, 9.55),
        ("PCG", 3.0): (0.434, 9.83),
        ("PCG", 2.0): (0.277, 9.78),
        ("DDIM", 4.0): (1.841, 9.45),
        ("DDPM", 4.0): (0.769, 9.63),
        ("PCG", 7.0): (0.746, 9.90),
    }
)


def ddim_variance(scale: float) -> float:
    """Return the variance of guided DDIM on the Gaussian problem in the limit of small steps."""
    return 2.0 ** (1.0 - scale)


def ddpm_variance(scale: float) -> float:
    """Return the variance of guided DDPM on the Gaussian problem in the limit of small steps, for scales above 1/2."""
    return (2.0 - 2.0 ** (2.0 - 2.0 * scale)) / (2.0 * scale - 1.0)


def powered_variance(scale: float) -> float:
    """Return the variance of p(x | c)^scale p(x)^(1 - scale) on the Gaussian problem."""
    return 2.0 / (scale + 1.0)


def ddpm_mean(scale: float) -> float:
    """Return the mean of guided DDPM on the Gaussian problem under the condition c = 1."""
    return 2.0 - 2.0 ** (1.0 - scale)
