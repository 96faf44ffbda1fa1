"""Pure functions for measuring what papers claim about generative models.

Three modules have words that stand alone badly. What a number says of a claim is asked of `verdicts`: `verdicts.equal`,
`verdicts.less`, `verdicts.greater`, `verdicts.exact`. Moments of samples that arrive in batches are kept by
`streaming_moments`: `.init`, `.update`, `.merge`, `.moments`. Parameters of several sources are put together by
`source_params`: `.merge`, `.separate`, `.of_each_source`.
"""

from jaxgen.statistics import source_params, streaming_moments, verdicts
from jaxgen.statistics.asymptotic_tv import asymptotic_expected_tv
from jaxgen.statistics.bracketing import (
    ArmSize,
    EbmSize,
    GaussianBracket,
    gaussian_bracket,
    log_bracket_arm,
    log_bracket_density,
    log_bracket_ebm,
    log_bracket_gaussian,
    log_cover_mlp,
)
from jaxgen.statistics.conditional_mle import CategoricalFit, GaussianFit, categorical_mle, gaussian_mle, sample_sources
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
from jaxgen.statistics.expected_tv import (
    expected_average_tv,
    expected_source_tv,
    expected_tv_categorical,
    expected_tv_gaussian,
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
from jaxgen.statistics.likelihood import MaximumLikelihood, fit_mle
from jaxgen.statistics.memorization import memorization_ratio
from jaxgen.statistics.permutation import PermutationTest, mmd_permutation_test
from jaxgen.statistics.power import binomial_power, normal_power, t_power, tost_power
from jaxgen.statistics.precision_recall import PrecisionRecall, precision_recall
from jaxgen.statistics.resampling import bootstrap_difference, bootstrap_mean, group_permutations, sign_flips
from jaxgen.statistics.sharing import crossover_spread, james_stein_means, squared_error
from jaxgen.statistics.sliced_wasserstein import sliced_wasserstein2
from jaxgen.statistics.source_params import (
    ParameterCounts,
    SourceParams,
    apply_sources,
    count_source_parameters,
    init_multi,
    init_single,
    split_by_path,
)
from jaxgen.statistics.source_similarity import Similarity, estimated_similarity, predicted_ratio
from jaxgen.statistics.source_weights import optimal_source_weights, weighted_expected_tv
from jaxgen.statistics.streaming_moments import MomentState
from jaxgen.statistics.total_variation import (
    TotalVariation,
    tv_enumerated,
    tv_gaussian,
    tv_mc_bounded,
    tv_mc_mixture,
    tv_mc_ratio,
    tv_quadrature,
)
from jaxgen.statistics.tv_bounds import (
    rate_arm,
    rate_ebm,
    rate_gaussian,
    rate_ratio,
    similarity,
    tv_bound,
    tv_bound_sharp,
    vacuous_below,
)
from jaxgen.statistics.two_sample import (
    classifier_accuracy,
    mean_nearest_neighbor_distance,
    nearest_neighbor_accuracy,
)

__all__ = [
    "INCEPTION_ID",
    "ArmSize",
    "CategoricalFit",
    "Confidence",
    "EbmSize",
    "FeatureFunction",
    "FeatureMoments",
    "FeatureSet",
    "Features",
    "FrechetDistance",
    "GaussianBracket",
    "GaussianFit",
    "Kernel",
    "MaximumLikelihood",
    "MomentState",
    "Moments",
    "ParameterCounts",
    "PermutationTest",
    "PrecisionRecall",
    "Similarity",
    "SourceParams",
    "TotalVariation",
    "apply_sources",
    "asymptotic_expected_tv",
    "binomial_power",
    "bootstrap_difference",
    "bootstrap_mean",
    "categorical_mle",
    "classifier_accuracy",
    "clopper_pearson",
    "count_source_parameters",
    "crossover_spread",
    "custom_features",
    "deterministic",
    "estimated_similarity",
    "expected_average_tv",
    "expected_source_tv",
    "expected_tv_categorical",
    "expected_tv_gaussian",
    "extract_features",
    "fd",
    "fd_debiased",
    "fd_difference",
    "fd_infinity",
    "fd_jackknife",
    "feature_moments",
    "fisher_z",
    "fit_mle",
    "frechet_distance",
    "frechet_distance_float64",
    "gaussian_bias",
    "gaussian_bracket",
    "gaussian_mle",
    "group_permutations",
    "init_multi",
    "init_single",
    "james_stein_means",
    "load_feature_moments",
    "load_features",
    "log_bracket_arm",
    "log_bracket_density",
    "log_bracket_ebm",
    "log_bracket_gaussian",
    "log_cover_mlp",
    "log_log_slopes",
    "mean_nearest_neighbor_distance",
    "median_bandwidth",
    "memorization_ratio",
    "mmd_permutation_test",
    "moments_of_features",
    "nearest_neighbor_accuracy",
    "normal_power",
    "optimal_source_weights",
    "pca_features",
    "polynomial_kernel",
    "precision_recall",
    "predicted_ratio",
    "random_conv_features",
    "rate_arm",
    "rate_ebm",
    "rate_gaussian",
    "rate_ratio",
    "rbf_kernel",
    "sample_frechet_distance",
    "sample_moments",
    "sample_sources",
    "save_feature_moments",
    "save_features",
    "sign_flips",
    "similarity",
    "sliced_wasserstein2",
    "source_params",
    "split_by_path",
    "squared_error",
    "streaming_moments",
    "t_mean",
    "t_power",
    "t_regression",
    "tost_power",
    "tv_bound",
    "tv_bound_sharp",
    "tv_enumerated",
    "tv_gaussian",
    "tv_mc_bounded",
    "tv_mc_mixture",
    "tv_mc_ratio",
    "tv_quadrature",
    "unbiased_frechet_distance",
    "unbiased_mmd2",
    "undecided",
    "vacuous_below",
    "verdicts",
    "weighted_expected_tv",
    "welch",
]
