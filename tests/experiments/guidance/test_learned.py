"""What the networks of three clusters are trained on and by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.guidance import learned
from jaxgen.models import init_params


def test_the_sets_of_a_seed_are_nested_and_follow_the_condition():
    sets = learned.training_sets((5, 20_000), 2, 0)
    assert sets.points.shape == (4, 20_000, 1)
    np.testing.assert_array_equal(sets.count, [5, 20_000, 5, 20_000])
    np.testing.assert_array_equal(sets.points[0], sets.points[1])
    assert abs(sets.points[0] - sets.points[2]).min() > 0
    # .8 * 3 - .05 * 3, and 1 + 9 * .85 - 2.25^2; four standard errors.
    assert sets.points[0].mean() == pytest.approx(2.25, abs=4 * 1.9 / 20_000**0.5)
    assert sets.points[0].var() == pytest.approx(3.5875, rel=0.06)


def test_a_network_is_trained_on_the_points_of_its_set_alone():
    params = jax.tree.map(jnp.zeros_like, init_params(learned.MODEL, jax.random.key(0)))
    given = learned.Points(jnp.array([[0.0], [0.0], [1000.0]]), jnp.asarray(2))
    keys = jax.random.split(jax.random.key(1), 400)
    losses = jax.jit(jax.vmap(lambda key, given: learned.loss(learned.MODEL, params, key, given), (0, None)))
    # A network of zeros predicts d^2 x / (sigma^2 + d^2), of the clean point 0: the loss is e^2 d^2 / (sigma^2 + d^2).
    assert (losses(keys, given) < 30).all()
    assert 0.2 < np.mean(np.asarray(losses(keys, given._replace(count=jnp.asarray(3)))) > 1000) < 0.45
