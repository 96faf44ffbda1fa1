"""Networks as flax linen modules, used through `init` and `apply` alone."""

from jaxgen.models.image_mlp import ImageMLP, ImageMLPConfig, fourier_features
from jaxgen.models.labels import check_labels, drop_labels
from jaxgen.models.mlp import MLP, MLPConfig
from jaxgen.models.parameters import Model, abstract_params, init_params, logical_axes

__all__ = [
    "MLP",
    "ImageMLP",
    "ImageMLPConfig",
    "MLPConfig",
    "Model",
    "abstract_params",
    "check_labels",
    "drop_labels",
    "fourier_features",
    "init_params",
    "logical_axes",
]
