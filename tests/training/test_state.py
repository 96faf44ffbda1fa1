import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.training import SEED_AXES, create
from jaxgen.training.state import owned


def test_create_starts_at_step_zero_as_a_pytree():
    state = create(jax.random.key(0), {"w": jnp.ones(2)}, extra={"kl": jnp.ones(())})
    assert state.step.dtype == jnp.int32
    assert state.step.shape == ()
    assert len(jax.tree.leaves(state)) == 4


def test_a_state_is_stacked_over_seeds_but_for_its_step():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key: create(key, {"w": jax.random.normal(key, (2,))})  # noqa: E731
    state = jax.vmap(draw, out_axes=SEED_AXES)(keys)
    assert state.step.shape == ()
    assert state.key.shape == (3,)
    np.testing.assert_array_equal(state.params["w"][1], draw(keys[1]).params["w"])


def test_owned_copies_what_occurs_twice_or_elsewhere():
    w, v = jnp.ones(2), jnp.ones(3)
    state = owned(create(jax.random.key(0), {"w": w, "v": v}, ema={"w": w}), {"reference": v})
    pointers = [leaf.unsafe_buffer_pointer() for leaf in (state.params["w"], state.ema["w"], state.params["v"], v)]
    assert len(set(pointers)) == 4
    assert state.params["w"] is w


def test_owned_leaves_have_no_weak_type():
    state = owned(create(jax.random.key(0), {"w": jnp.ones(2)}, opt_state={"rate": 0.1, "power": jnp.asarray(2)}))
    assert state.opt_state["rate"].dtype == jnp.float32
    assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(state))
