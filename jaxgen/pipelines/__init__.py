"""What users call from scripts and notebooks: whole jobs over every device, composed from the rooms below."""

from jaxgen.pipelines.augmentation import SHIFT_FEATURES, random_shift
from jaxgen.pipelines.image_sampling import (
    DrawFilm,
    DrawImage,
    Film,
    Method,
    PredictorCorrectorGuidance,
    film_images,
    generate_images,
    guided_ddim,
    guided_ddpm,
    guided_euler,
)
from jaxgen.pipelines.image_training import (
    DenoisingUpdate,
    initial_state,
    predict_given,
    train_diffusion,
    train_on_batches,
    training_flops,
)
from jaxgen.pipelines.objectives import EDMObjective, FlowObjective, Network, Objective
from jaxgen.pipelines.recipe import Hyperparameters, Recipe, hyperparameters

__all__ = [
    "SHIFT_FEATURES",
    "DenoisingUpdate",
    "DrawFilm",
    "DrawImage",
    "EDMObjective",
    "Film",
    "FlowObjective",
    "Hyperparameters",
    "Method",
    "Network",
    "Objective",
    "PredictorCorrectorGuidance",
    "Recipe",
    "film_images",
    "generate_images",
    "guided_ddim",
    "guided_ddpm",
    "guided_euler",
    "hyperparameters",
    "initial_state",
    "predict_given",
    "random_shift",
    "train_diffusion",
    "train_on_batches",
    "training_flops",
]
