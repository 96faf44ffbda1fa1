"""One step of training a class-conditional denoising network, and the state that it moves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree, Shaped

from jaxgen.diffusion import Level, Prediction, noise_ratio, uncertain_loss
from jaxgen.models import EDM2, ImageNetwork, drop_labels, init_variables, project_weights
from jaxgen.pipelines.augmentation import random_shift
from jaxgen.pipelines.latents import LatentScaling, draw_latent
from jaxgen.pipelines.objectives import Objective
from jaxgen.pipelines.optimisation import Optimisation, TrainingRecipe
from jaxgen.pipelines.pixels import scaled
from jaxgen.training import TrainState, accumulated_gradient, count_flops, create
from jaxgen.typing import ArrayLike, Params, PRNGKey, Sample, Scalar


def predict_given(
    model: ImageNetwork,
    objective: Objective,
    params: Params,
    x: Sample,
    level: Level,
    label: Int[ArrayLike, ""],
    *,
    variables: PyTree = (),
) -> Prediction:
    """Predict one image of class `label`, or of any for `model.config.null_label`, free of augmentation.

    Args:
        model: the network.
        objective: how its output is read.
        params: its parameters.
        x: one noisy image, of the model's image shape.
        level: where it is.
        label: class in [0, num_classes].
        variables: its other collections, `state.variables`; none for most networks.
    """
    shift = jnp.zeros(model.config.augmentation, x.dtype)
    return _predict(model, objective, collections(params, variables), x, level, label, shift)


def collections(params: Params, variables: PyTree = ()) -> dict[str, PyTree]:
    """Put the collections of a network together as `apply` wants them."""
    return {"params": params, **(variables or {})}


@dataclasses.dataclass(frozen=True)
class DenoisingUpdate:
    """One step of training, as `fit` wants it; equal ones share a compiled program.

    Constants are the numbers of the recipe, `recipe.hyperparameters()`; a batch holds `image`, scaled to about
    [-1, 1] or as bytes, and `label`. The weights of EDM2 are normalised before each step and left as Adam moved them
    after it, which is what the averages are of (Karras et al. 2024, section 2.3); its loss is weighted by the
    uncertainty that it learns (section 2, eq. 21) and summed over the pixels.

    Attributes:
        model: the network.
        objective: what it predicts.
        optimisation: how the parameters move, `recipe.optimisation()`.
        mirror: whether half of the images are mirrored.
        accumulate: parts that the gradient is computed in.
        level_edges: rising values of ln(sigma / alpha); where there are any, the metrics `level_loss` and
            `level_share` hold, for each interval between them, the sum of the losses (without the learned weight) and
            the number of the images there, both divided by the size of the batch.
        latents: where given, `image` is the stored posterior of a latent, which is drawn anew each time and scaled so.
    """

    model: ImageNetwork
    objective: Objective
    optimisation: Optimisation
    mirror: bool = False
    accumulate: int = 1
    level_edges: tuple[float, ...] = ()
    latents: LatentScaling | None = None

    def __call__(self, state: TrainState, constants: Any, batch: PyTree) -> tuple[TrainState, dict]:
        """Take one step on the mean loss of a batch."""
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(batch["label"]))
        return self.step(state, constants, keys, batch)

    def step(
        self, state: TrainState, constants: Any, keys: Key[Array, " batch"], batch: PyTree
    ) -> tuple[TrainState, dict]:
        """Take one step on the mean loss of a batch, where each image brings the key of its noise."""
        examples = (keys, batch["image"], batch["label"])
        params = project_weights(state.params) if isinstance(self.model, EDM2) else state.params

        def mean_loss(params: Params, examples: tuple) -> tuple[Scalar, dict]:
            weights = collections(params, state.variables)
            losses = jax.vmap(lambda key, *example: self._loss(weights, constants, key, *example))(*examples)
            return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), losses)

        (loss, by_level), gradient = accumulated_gradient(mean_loss, params, examples, self.accumulate, has_aux=True)
        gradient, told = self.optimisation.mend(gradient)
        change, opt_state = self.optimisation.optimiser(constants).update(gradient, state.opt_state, params)
        moved = optax.apply_updates(params, change)
        average = self.optimisation.average().update(state.ema, moved)
        rate = opt_state.hyperparams["learning_rate"]  # pyright: ignore[reportAttributeAccessIssue]
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "learning_rate": rate, **told, **by_level}
        if isinstance(self.model, EDM2):
            metrics["relative_change"] = optax.tree.norm(change) / optax.tree.norm(params)
        return state._replace(params=moved, opt_state=opt_state, ema=average), metrics

    def _loss(
        self,
        weights: PyTree,
        constants: Any,
        key: PRNGKey,
        image: Shaped[Array, "..."],
        label: Int[Array, ""],
    ) -> tuple[Scalar, dict[str, Array]]:
        label_key, shift_key, level_key, noise_key = jax.random.split(key, 4)
        if self.latents is None:
            image = scaled(image)
        else:
            image = draw_latent(jax.random.fold_in(noise_key, 2), image, self.latents)
        label = drop_labels(label_key, label, constants.label_dropout, self.model.config.null_label)
        shift = jnp.zeros(0, image.dtype)
        if self.model.config.augmentation:
            image, shift = random_shift(shift_key, image, constants.largest_shift)
        # Keys that not every training uses are folded in, so that one without them draws what it always drew.
        if self.mirror:
            image = jnp.where(jax.random.bernoulli(jax.random.fold_in(shift_key, 1)), image[:, ::-1], image)
        dropout_key = jax.random.fold_in(noise_key, 1) if self.model.config.dropout else None
        level = self.objective.draw_level(level_key)

        def predict(x: Sample, level: Level) -> Prediction:
            return _predict(self.model, self.objective, weights, x, level, label, shift, dropout_key)

        loss = self.objective.loss(predict, noise_key, image, level)
        by_level = self._by_level(loss, level)
        if isinstance(self.model, EDM2):
            told: Any = self.model.apply(weights, self.objective.condition(level), method=self.model.log_variance)
            loss = image.size * uncertain_loss(loss, told)
        return loss, by_level

    def _by_level(self, loss: Scalar, level: Level) -> dict[str, Array]:
        if not self.level_edges:
            return {}
        interval = jnp.searchsorted(jnp.asarray(self.level_edges), jnp.log(noise_ratio(level)))
        share = jax.nn.one_hot(interval, len(self.level_edges) + 1)
        return {"level_loss": jnp.asarray(loss) * share, "level_share": share}


def initial_state(model: ImageNetwork, recipe: TrainingRecipe, key: PRNGKey) -> TrainState:
    """Draw the parameters, and put the state of a run together at step 0; the key is consumed."""
    init_key, run_key = jax.random.split(key)
    params, variables = init_variables(model, init_key)
    optimisation = recipe.optimisation()
    opt_state = optimisation.optimiser(recipe.hyperparameters()).init(params)
    return create(run_key, params, opt_state, variables=variables, ema=optimisation.average().init(params))


def training_flops(model: ImageNetwork, objective: Objective, recipe: TrainingRecipe) -> float:
    """Count the floating-point operations of the matrix products and convolutions in one update.

    These are the model's: what `remat` computes twice counts once (Chowdhery et al. 2022, PaLM, appendix B).
    """
    plain = dataclasses.replace(model, config=dataclasses.replace(model.config, remat=False))
    update = DenoisingUpdate(plain, objective, recipe.optimisation())
    state = jax.eval_shape(lambda: initial_state(plain, recipe, jax.random.key(0)))
    batch = {
        "image": jax.ShapeDtypeStruct((recipe.batch_size, *model.config.image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32),
    }
    return count_flops(update, state, recipe.hyperparameters(), batch)


def _predict(model, objective, weights, x, level, label, shift, dropout_key=None) -> Prediction:
    augmentation = (shift,) if model.config.augmentation else ()
    dropout = {} if dropout_key is None else {"deterministic": False, "rngs": {"dropout": dropout_key}}

    def network(x: Sample, condition: Scalar) -> Sample:
        return model.apply(weights, x, condition, label, *augmentation, **dropout)

    return objective.predict(network, x, level)
