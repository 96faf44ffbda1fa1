"""What users call from scripts and notebooks: whole jobs over every device, composed from the rooms below."""

from jaxgen.pipelines.augmentation import SHIFT_FEATURES, random_shift
from jaxgen.pipelines.denoising_update import (
    DenoisingUpdate,
    collections,
    initial_state,
    predict_given,
    training_flops,
)
from jaxgen.pipelines.edm2_recipe import EDM2Adam, EDM2Hyperparameters, EDM2Recipe, RateLaw
from jaxgen.pipelines.image_sampling import (
    DrawFilm,
    DrawImage,
    Film,
    Method,
    PredictorCorrectorGuidance,
    Weights,
    film_images,
    generate_images,
    guided_ddim,
    guided_ddpm,
    guided_euler,
    guided_heun,
)
from jaxgen.pipelines.image_training import train_diffusion, train_on_batches
from jaxgen.pipelines.latents import LatentScaling, draw_latent, raw_latent
from jaxgen.pipelines.loss_by_level import LevelLosses, loss_by_level
from jaxgen.pipelines.objectives import EDMObjective, FlowObjective, Network, Objective
from jaxgen.pipelines.optimisation import AdamW, Hyperparameters, Optimisation, TrainingRecipe, averaged_params
from jaxgen.pipelines.recipe import Recipe
from jaxgen.pipelines.source_arms import (
    Arm,
    ArmUpdate,
    arm_weights,
    initial_arm,
    sample_source,
    source_losses,
    train_arm,
)
from jaxgen.pipelines.train_classifier import (
    ClassifierHyperparameters,
    ClassifierRecipe,
    ClassifierUpdate,
    classifier_features,
    initial_classifier,
    label_accuracy,
    train_classifier,
)

__all__ = [
    "SHIFT_FEATURES",
    "AdamW",
    "Arm",
    "ArmUpdate",
    "ClassifierHyperparameters",
    "ClassifierRecipe",
    "ClassifierUpdate",
    "DenoisingUpdate",
    "DrawFilm",
    "DrawImage",
    "EDM2Adam",
    "EDM2Hyperparameters",
    "EDM2Recipe",
    "EDMObjective",
    "Film",
    "FlowObjective",
    "Hyperparameters",
    "LatentScaling",
    "LevelLosses",
    "Method",
    "Network",
    "Objective",
    "Optimisation",
    "PredictorCorrectorGuidance",
    "RateLaw",
    "Recipe",
    "TrainingRecipe",
    "Weights",
    "arm_weights",
    "averaged_params",
    "classifier_features",
    "collections",
    "draw_latent",
    "film_images",
    "generate_images",
    "guided_ddim",
    "guided_ddpm",
    "guided_euler",
    "guided_heun",
    "initial_arm",
    "initial_classifier",
    "initial_state",
    "label_accuracy",
    "loss_by_level",
    "predict_given",
    "random_shift",
    "raw_latent",
    "sample_source",
    "source_losses",
    "train_arm",
    "train_classifier",
    "train_diffusion",
    "train_on_batches",
    "training_flops",
]
