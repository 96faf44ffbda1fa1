"""Networks as flax linen modules, used through `init` and `apply` alone."""

from jaxgen.models.autoregressive_mlp import AutoregressiveMLP, AutoregressiveMLPConfig
from jaxgen.models.conditioning import fourier_features
from jaxgen.models.edm2 import EDM2, EDM2Config, edm2_config, project_weights
from jaxgen.models.energy_mlp import EnergyMLP, EnergyMLPConfig
from jaxgen.models.image_classifier import ImageClassifier, ImageClassifierConfig
from jaxgen.models.image_conv import ImageConv, ImageConvConfig
from jaxgen.models.image_mlp import ImageMLP, ImageMLPConfig
from jaxgen.models.image_network import ImageNetwork
from jaxgen.models.in_context import (
    diagonal_least_squares_predict,
    gradient_steps_predict,
    in_context_loss,
    least_squares_predict,
)
from jaxgen.models.labels import check_labels, drop_labels
from jaxgen.models.linear_attention import (
    Attend,
    CausalLinearAttention,
    CausalLinearAttentionConfig,
    attend_by_prefix_sums,
    attend_by_scores,
    attend_real,
    autoregressive_loss,
    autoregressive_loss_real,
    autoregressive_tokens,
    blocks,
    causal_layer,
    diagonal_params,
    gaussian_params,
    next_token_loss,
    sector_params,
)
from jaxgen.models.mlp import MLP, MLPConfig
from jaxgen.models.parameters import (
    Model,
    abstract_params,
    abstract_variables,
    init_params,
    init_variables,
    logical_axes,
)
from jaxgen.models.stacked_attention import (
    full_params,
    looped_attention,
    stacked_attention,
    stacked_gaussian_params,
)

__all__ = [
    "EDM2",
    "MLP",
    "Attend",
    "AutoregressiveMLP",
    "AutoregressiveMLPConfig",
    "CausalLinearAttention",
    "CausalLinearAttentionConfig",
    "EDM2Config",
    "EnergyMLP",
    "EnergyMLPConfig",
    "ImageClassifier",
    "ImageClassifierConfig",
    "ImageConv",
    "ImageConvConfig",
    "ImageMLP",
    "ImageMLPConfig",
    "ImageNetwork",
    "MLPConfig",
    "Model",
    "abstract_params",
    "abstract_variables",
    "attend_by_prefix_sums",
    "attend_by_scores",
    "attend_real",
    "autoregressive_loss",
    "autoregressive_loss_real",
    "autoregressive_tokens",
    "blocks",
    "causal_layer",
    "check_labels",
    "diagonal_least_squares_predict",
    "diagonal_params",
    "drop_labels",
    "edm2_config",
    "fourier_features",
    "full_params",
    "gaussian_params",
    "gradient_steps_predict",
    "in_context_loss",
    "init_params",
    "init_variables",
    "least_squares_predict",
    "logical_axes",
    "looped_attention",
    "next_token_loss",
    "project_weights",
    "sector_params",
    "stacked_attention",
    "stacked_gaussian_params",
]
