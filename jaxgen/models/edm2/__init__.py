"""EDM2 (Karras et al. 2024): a U-Net whose activations, weights and updates keep their magnitude in training."""

from jaxgen.models.edm2.config import EDM2Config, edm2_config
from jaxgen.models.edm2.network import EDM2
from jaxgen.models.edm2.projection import project_weights

__all__ = ["EDM2", "EDM2Config", "edm2_config", "project_weights"]
