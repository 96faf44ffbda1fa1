"""Whether samples lie nearer to the training data than new data do."""

from functools import partial

import jax
from jaxtyping import Array, Float

from jaxgen.statistics.two_sample import mean_nearest_neighbor_distance
from jaxgen.typing import ArrayLike


@partial(jax.jit, static_argnames="block")
def memorization_ratio(
    samples: Float[ArrayLike, "count dim"],
    held_out: Float[ArrayLike, "held_out dim"],
    training: Float[ArrayLike, "training dim"],
    *,
    block: int = 64,
) -> Float[Array, ""]:
    """Divide the mean distance of samples to their nearest training point by that of held-out data.

    1 is what new draws of the data's law give; near 0 the samples copy the training set; above 1 they are farther
    from it than data are. A Fréchet distance to the training set falls as a model memorises: report both.

    Args:
        samples: generated samples.
        held_out: data of the training set's law that training never saw.
        training: what the model was trained on.
        block: samples whose distances are computed together; memory is `block` times the training count.

    Returns:
        The ratio; NaN if a number is not finite, infinite or NaN if every held-out point is a training point.

    Raises:
        ValueError: a set is empty, not real floating [count, dim], or of another dimension.

    >>> training = jax.numpy.array([[0.0], [10.0]])
    >>> print(memorization_ratio(jax.numpy.array([[1.0]]), jax.numpy.array([[8.0]]), training))
    0.5
    """
    ours = mean_nearest_neighbor_distance(samples, training, block=block)
    return ours / mean_nearest_neighbor_distance(held_out, training, block=block)
