"""Pure functions for measuring what papers claim about generative models.

Two modules have words that stand alone badly. What a number says of a claim is asked of `verdicts`: `verdicts.equal`,
`verdicts.less`, `verdicts.greater`, `verdicts.exact`. Moments of samples that arrive in batches are kept by
`streaming_moments`: `.init`, `.update`, `.merge`, `.moments`.
"""

from jaxgen.statistics import streaming_moments, verdicts
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
from jaxgen.statistics.feature_distance import FeatureSet, FrechetDistance, fd
from jaxgen.statistics.feature_files import (
    load_feature_moments,
    load_features,
    save_feature_moments,
    save_features,
)
from jaxgen.statistics.feature_functions import (
    INCEPTION_ID,
    FeatureFunction,
    custom_features,
    pca_features,
    random_conv_features,
)
from jaxgen.statistics.feature_moments import (
    FeatureMoments,
    Features,
    extract_features,
    feature_moments,
    moments_of_features,
)
from jaxgen.statistics.frechet import Moments, frechet_distance, sample_moments, unbiased_frechet_distance
from jaxgen.statistics.frechet_bias import fd_debiased, fd_difference, fd_infinity, fd_jackknife, gaussian_bias
from jaxgen.statistics.frechet_host import frechet_distance_float64, sample_frechet_distance
from jaxgen.statistics.kernel import Kernel, median_bandwidth, polynomial_kernel, rbf_kernel, unbiased_mmd2
from jaxgen.statistics.memorization import memorization_ratio
from jaxgen.statistics.permutation import PermutationTest, mmd_permutation_test
from jaxgen.statistics.power import binomial_power, normal_power, t_power, tost_power
from jaxgen.statistics.precision_recall import PrecisionRecall, precision_recall
from jaxgen.statistics.resampling import bootstrap_difference, bootstrap_mean, group_permutations, sign_flips
from jaxgen.statistics.sliced_wasserstein import sliced_wasserstein2
from jaxgen.statistics.streaming_moments import MomentState
from jaxgen.statistics.two_sample import (
    classifier_accuracy,
    mean_nearest_neighbor_distance,
    nearest_neighbor_accuracy,
)

__all__ = [
    "INCEPTION_ID",
    "Confidence",
    "FeatureFunction",
    "FeatureMoments",
    "FeatureSet",
    "Features",
    "FrechetDistance",
    "Kernel",
    "MomentState",
    "Moments",
    "PermutationTest",
    "PrecisionRecall",
    "binomial_power",
    "bootstrap_difference",
    "bootstrap_mean",
    "classifier_accuracy",
    "clopper_pearson",
    "custom_features",
    "deterministic",
    "extract_features",
    "fd",
    "fd_debiased",
    "fd_difference",
    "fd_infinity",
    "fd_jackknife",
    "feature_moments",
    "fisher_z",
    "frechet_distance",
    "frechet_distance_float64",
    "gaussian_bias",
    "group_permutations",
    "load_feature_moments",
    "load_features",
    "log_log_slopes",
    "mean_nearest_neighbor_distance",
    "median_bandwidth",
    "memorization_ratio",
    "mmd_permutation_test",
    "moments_of_features",
    "nearest_neighbor_accuracy",
    "normal_power",
    "pca_features",
    "polynomial_kernel",
    "precision_recall",
    "random_conv_features",
    "rbf_kernel",
    "sample_frechet_distance",
    "sample_moments",
    "save_feature_moments",
    "save_features",
    "sign_flips",
    "sliced_wasserstein2",
    "streaming_moments",
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
