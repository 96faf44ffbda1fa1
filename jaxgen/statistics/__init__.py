"""Pure functions for measuring what papers claim about generative models.

What a number says of a claim is asked of the module `verdicts`, whose words stand alone badly: `verdicts.equal`,
`verdicts.less`, `verdicts.greater`, `verdicts.exact`.
"""

from jaxgen.statistics import verdicts
from jaxgen.statistics.confidence import (
    Confidence,
    clopper_pearson,
    deterministic,
    fisher_z,
    log_log_slopes,
    t_mean,
    t_regression,
    undecided,
    welch,
)
from jaxgen.statistics.frechet import Moments, frechet_distance, sample_moments, unbiased_frechet_distance
from jaxgen.statistics.kernel import Kernel, median_bandwidth, polynomial_kernel, rbf_kernel, unbiased_mmd2
from jaxgen.statistics.permutation import PermutationTest, mmd_permutation_test
from jaxgen.statistics.power import binomial_power, normal_power, t_power, tost_power
from jaxgen.statistics.precision_recall import PrecisionRecall, precision_recall
from jaxgen.statistics.resampling import bootstrap_difference, bootstrap_mean, group_permutations, sign_flips
from jaxgen.statistics.sliced_wasserstein import sliced_wasserstein2
from jaxgen.statistics.two_sample import (
    classifier_accuracy,
    mean_nearest_neighbor_distance,
    nearest_neighbor_accuracy,
)

__all__ = [
    "Confidence",
    "Kernel",
    "Moments",
    "PermutationTest",
    "PrecisionRecall",
    "binomial_power",
    "bootstrap_difference",
    "bootstrap_mean",
    "classifier_accuracy",
    "clopper_pearson",
    "deterministic",
    "fisher_z",
    "frechet_distance",
    "group_permutations",
    "log_log_slopes",
    "mean_nearest_neighbor_distance",
    "median_bandwidth",
    "mmd_permutation_test",
    "nearest_neighbor_accuracy",
    "normal_power",
    "polynomial_kernel",
    "precision_recall",
    "rbf_kernel",
    "sample_moments",
    "sign_flips",
    "sliced_wasserstein2",
    "t_mean",
    "t_power",
    "t_regression",
    "tost_power",
    "unbiased_frechet_distance",
    "unbiased_mmd2",
    "undecided",
    "verdicts",
    "welch",
]
