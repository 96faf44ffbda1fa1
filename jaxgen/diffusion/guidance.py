"""Classifier-free guidance. Scale 0 is unconditional, 1 conditional, above 1 extrapolates."""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PyTree

from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Predict, Prediction
from jaxgen.typing import Sample, Scalar

PredictGiven: TypeAlias = Callable[[Sample, Level, PyTree], Prediction]


def check_scale(scale: Scalar) -> None:
    """Refuse a guidance scale that is not a finite number; traced scales pass.

    Raises:
        ValueError: if `scale` is infinite or not a number.
    """
    if not isinstance(scale, Tracer) and not math.isfinite(float(scale)):
        raise ValueError(
            f"the guidance scale must be finite, got {scale}; 0 is unconditional, 1 conditional, above 1 extrapolates"
        )


def combine(conditional: Prediction, unconditional: Prediction, scale: Scalar) -> Prediction:
    """Combine two predictions as scale * conditional + (1 - scale) * unconditional (Ho & Salimans 2022, eq. 6).

    One rule for every parameterisation, since all are affine in both views. In this form, and not in
    u + scale * (c - u), scale 1 returns the conditional and scale 0 the unconditional prediction to the bit.
    """
    return jax.tree.map(lambda c, u: scale * c + (1.0 - scale) * u, conditional, unconditional)


def guide(conditional: Predict, unconditional: Predict, scale: Scalar) -> Predict:
    """Guide one function by another: two evaluations, for closed forms; networks go through `classifier_free`.

    Raises:
        ValueError: if `scale` is not finite.
    """
    check_scale(scale)
    return lambda x, level: combine(conditional(x, level), unconditional(x, level), scale)


def classifier_free(predict: PredictGiven, condition: PyTree, null_condition: PyTree, scale: Scalar) -> Predict:
    """Guide a conditional network by itself under the null condition, both in one evaluation of a batch of two.

    Args:
        predict: maps (x, level, condition) to a Prediction, for one sample.
        condition: what to sample, for example a label; a pytree of arrays.
        null_condition: the condition on which the network was trained to be unconditional, of the same structure.
        scale: guidance scale.

    Raises:
        ValueError: if `scale` is not finite.
    """
    check_scale(scale)
    conditions = jax.tree.map(lambda c, n: jnp.stack([jnp.asarray(c), jnp.asarray(n)]), condition, null_condition)

    def predict_guided(x: Sample, level: Level) -> Prediction:
        both = jax.vmap(predict, in_axes=(None, None, 0))(x, level, conditions)
        conditional, unconditional = (Prediction(both.x0[i], both.noise[i]) for i in (0, 1))
        return combine(conditional, unconditional, scale)

    return predict_guided
