"""Classifier-free guidance, whose scale may depend on the noise level."""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from jaxgen.diffusion.levels import Level, noise_ratio
from jaxgen.diffusion.predictions import Predict, Prediction
from jaxgen.typing import Sample, Scalar

PredictGiven: TypeAlias = Callable[[Sample, Level, PyTree], Prediction]
PredictPair: TypeAlias = Callable[[Sample, Level], tuple[Prediction, Prediction]]
LevelScale: TypeAlias = Callable[[Level], Scalar]


def check_scale(scale: Scalar) -> None:
    """Refuse a guidance scale that is not a finite number; traced scales pass.

    Raises:
        ValueError: if `scale` is infinite or not a number.
    """
    if not isinstance(scale, Tracer) and not math.isfinite(float(scale)):
        raise ValueError(
            f"the guidance scale must be finite, got {scale}; 0 is unconditional, 1 conditional, above 1 extrapolates"
        )


def check_shapes(conditional: Prediction, unconditional: Prediction) -> None:
    """Refuse a pair of predictions that would have to be broadcast.

    Raises:
        ValueError: if the predictions have different shapes.
    """
    for c, u in zip(conditional, unconditional, strict=True):
        if jnp.shape(c) != jnp.shape(u):
            raise ValueError(f"both predictions need one shape, got {jnp.shape(c)} and, unconditional, {jnp.shape(u)}")


def combine(conditional: Prediction, unconditional: Prediction, scale: Scalar) -> Prediction:
    """Combine two predictions as scale * conditional + (1 - scale) * unconditional (Ho & Salimans 2022, eq. 6).

    One rule for every parameterisation, since all are affine in both views. In this form, and not in
    u + scale * (c - u), scale 1 returns the conditional and scale 0 the unconditional prediction to the bit.

    Raises:
        ValueError: if the predictions have different shapes.
    """
    check_shapes(conditional, unconditional)
    return jax.tree.map(lambda c, u: scale * c + (1.0 - scale) * u, conditional, unconditional)


def separate_pair(conditional: Predict, unconditional: Predict) -> PredictPair:
    """Pair two functions: two evaluations, for closed forms and for two networks."""
    return lambda x, level: (conditional(x, level), unconditional(x, level))


def batched_pair(predict: PredictGiven, condition: PyTree, null_condition: PyTree) -> PredictPair:
    """Pair a conditional network with itself under the null condition, both in one evaluation of a batch of two.

    Args:
        predict: maps (x, level, condition) to a Prediction, for one sample.
        condition: what to sample, for example a label; a pytree of arrays.
        null_condition: the condition on which the network was trained to be unconditional, of the same structure.

    Raises:
        ValueError: if both conditions are known and the same, which guides nothing at any scale.
    """
    leaves = [*jax.tree.leaves(condition), *jax.tree.leaves(null_condition)]
    if not any(isinstance(leaf, Tracer) for leaf in leaves) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, condition, null_condition))
    ):
        raise ValueError(
            f"the condition and the null condition are the same, {condition}, and guide nothing; sample the "
            "unconditional law by the network under that condition alone"
        )
    conditions = jax.tree.map(lambda c, n: jnp.stack([jnp.asarray(c), jnp.asarray(n)]), condition, null_condition)

    def predict_pair(x: Sample, level: Level) -> tuple[Prediction, Prediction]:
        both = jax.vmap(predict, in_axes=(None, None, 0))(x, level, conditions)
        conditional, unconditional = (Prediction(both.x0[i], both.noise[i]) for i in (0, 1))
        return conditional, unconditional

    return predict_pair


def interval_scale(scale: Scalar, low: Scalar, high: Scalar) -> LevelScale:
    """Guide where low < sigma / alpha <= high, and leave the conditional as it is elsewhere (Kynkäänniemi et al. 2024).

    Args:
        scale: guidance scale inside the interval.
        low: lower end, in units of the data.
        high: upper end, in units of the data; may be infinite, and then holds pure noise too.

    Raises:
        ValueError: if `scale` is not finite, or the ends are known and low < high does not hold.

    >>> scale = interval_scale(3.0, 0.5, 2.0)
    >>> [float(scale(Level(0.0, 1.0, sigma))) for sigma in (0.5, 1.0, 4.0)]
    [1.0, 3.0, 1.0]
    """
    check_scale(scale)
    if not any(isinstance(end, Tracer) for end in (low, high)) and not float(low) < float(high):
        raise ValueError(f"a guidance interval needs low < high, got {low} and {high}")

    def at(level: Level) -> Scalar:
        ratio = noise_ratio(level)
        return jnp.where((low < ratio) & (ratio <= high), scale, 1.0)

    return at


def level_scale(scale: Scalar | LevelScale) -> LevelScale:
    """Read a guidance scale, a number or a function of the level, as a function of the level.

    Raises:
        ValueError: if `scale` is known and not finite.
    """
    if callable(scale):
        return scale
    check_scale(scale)
    return lambda level: scale


def guide_pair(pair: PredictPair, scale: Scalar | LevelScale) -> Predict:
    """Guide a pair of predictions.

    Args:
        pair: the predictions with and without the condition.
        scale: guidance scale, a number or a function of the level.

    Raises:
        ValueError: if `scale` is known and not finite.
    """
    scale_at = level_scale(scale)
    return lambda x, level: combine(*pair(x, level), scale_at(level))


def guide(conditional: Predict, unconditional: Predict, scale: Scalar | LevelScale) -> Predict:
    """Guide one function by another: two evaluations, for closed forms; networks go through `classifier_free`.

    Raises:
        ValueError: if `scale` is known and not finite.
    """
    return guide_pair(separate_pair(conditional, unconditional), scale)


def autoguidance(strong: Predict, weak: Predict, scale: Scalar | LevelScale) -> Predict:
    """Guide a network by a weaker version of itself under the same condition (Karras et al. 2024, eq. 3).

    The weaker one, smaller or trained for less long, takes the place of the unconditional; scale 1 is the strong one.

    Raises:
        ValueError: if `scale` is known and not finite.
    """
    return guide(strong, weak, scale)


def classifier_free(
    predict: PredictGiven, condition: PyTree, null_condition: PyTree, scale: Scalar | LevelScale
) -> Predict:
    """Guide a conditional network by itself under the null condition, both in one evaluation of a batch of two.

    Args:
        predict: maps (x, level, condition) to a Prediction, for one sample.
        condition: what to sample, for example a label; a pytree of arrays.
        null_condition: the condition on which the network was trained to be unconditional, of the same structure.
        scale: guidance scale, a number or a function of the level such as `interval_scale`.

    Raises:
        ValueError: if `scale` is known and not finite, or both conditions are known and the same.
    """
    return guide_pair(batched_pair(predict, condition, null_condition), scale)
