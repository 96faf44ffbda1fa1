import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.training import (
    SEED_AXES,
    PowerEmaState,
    create,
    exponent_to_width,
    make_mesh,
    power_ema,
    state_shardings,
    width_to_exponent,
)


@pytest.mark.parametrize(
    ("width", "gamma"),
    [
        (0.05, 16.972198602303),
        (0.10, 6.937203937602),
        (0.15, 3.557868774899),
        (0.20, 1.826213779896),
        (0.25, 0.719823958001),
    ],
)
def test_exponents_of_the_paper_s_widths(width, gamma):
    assert abs(width_to_exponent(width) - gamma) < 1e-12


@given(st.floats(0.0, 1e4))
def test_the_width_is_the_standard_deviation_of_the_profile(gamma):
    # Moments of (gamma + 1) t^gamma on [0, 1]: 1/(gamma + 1 + k) times gamma + 1.
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    np.testing.assert_allclose(exponent_to_width(gamma) ** 2, square - mean**2, rtol=1e-6, atol=1e-15)


@given(st.floats(1e-4, 0.2886))
def test_exponent_and_width_invert_each_other(width):
    # Near 1/sqrt(12) gamma is near 0, and the roundings of a root of size 6 remain.
    np.testing.assert_allclose(exponent_to_width(width_to_exponent(width)), width, rtol=1e-11)


@pytest.mark.parametrize("width", [0.0, -0.1, 12**-0.5, 0.3, float("nan"), float("inf")])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(ValueError, match=rf"must lie in \(0, 1/sqrt\(12\) = 0\.288675\), got {width}"):
        width_to_exponent(width)
    with pytest.raises(ValueError, match="must lie in"):
        power_ema([0.1, width])


def test_exponents_out_of_range_and_no_or_equal_widths_are_refused():
    for gamma in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"at least 0 and finite, got {gamma}"):
            exponent_to_width(gamma)
    for widths in ([], [0.1, 0.05, 0.1]):
        with pytest.raises(ValueError, match="at least one width and each once"):
            power_ema(widths)


def after(average, values):
    """The state after an update with each row of `values`, which begins far away."""

    def step(state, value):
        return average.update(state, {"w": value}), None

    return jax.lax.scan(step, average.init({"w": jnp.full_like(values[0], 1e6)}), values)[0]


def discrete_profile(width, updates):
    """Weights of the values of all updates: (1 - beta_i) times beta_j of every later j."""
    power = width_to_exponent(width) + 1
    betas = [(1 - 1 / n) ** power for n in range(1, updates + 1)]
    weights = []
    for i, beta in enumerate(betas):
        weight = 1 - beta
        for later in betas[i + 1 :]:
            weight *= later
        weights.append(weight)
    return np.array(weights)


def test_weights_are_the_products_of_the_definition():
    with jax.enable_x64(True):
        state = after(power_ema([0.05, 0.2]), jnp.eye(60, dtype=jnp.float64))
        for width, average in zip((0.05, 0.2), state.averages, strict=True):
            weights = discrete_profile(width, 60)
            np.testing.assert_allclose(average["w"], weights, rtol=1e-11, atol=1e-16)
            assert abs(weights.sum() - 1) < 1e-13


def test_weights_approach_the_power_profile_and_its_width():
    updates = 4000
    state = after(power_ema([0.1]), jnp.eye(updates))
    weights, times = np.asarray(state.averages[0]["w"], np.float64), (np.arange(updates) + 0.5) / updates
    gamma = width_to_exponent(0.1)
    late = times > 0.3
    # The midpoint rule at 1/4000 of the length, and float32.
    np.testing.assert_allclose((weights * updates)[late], ((gamma + 1) * times**gamma)[late], rtol=1e-3)
    spread = np.sqrt(np.sum(weights * times**2) - np.sum(weights * times) ** 2)
    np.testing.assert_allclose(spread, 0.1, rtol=1e-3)


@pytest.mark.parametrize(
    ("width", "count", "beta"),
    [
        (0.05, 2, 3.888921105e-6),
        (0.05, 100, 0.834746968343254),
        (0.10, 100, 0.923327242269523),
        (0.10, 16384, 0.999515654066064),
        (0.05, 10**6, 1 - 1.7972046089253e-5),  # 40 digits
    ],
)
@pytest.mark.parametrize("double", [False, True])
def test_the_gain_is_exact_to_the_rounding_of_its_type(width, count, beta, double):
    with jax.enable_x64(double):
        zero, one = jnp.zeros((), float), jnp.ones((), float)
        average = power_ema([width])
        state = PowerEmaState((zero,), jnp.asarray(count - 1, jnp.int32))
        gain = float(average.update(state, one).averages[0])
        # Goldens are given to 10 digits or more of beta.
        tolerance = max(1e-9, 1e-15 / (1 - beta)) if double else 1e-6
        np.testing.assert_allclose(gain, 1 - beta, rtol=tolerance)


def test_the_first_update_copies_the_parameters_to_the_bit():
    value = {"w": jnp.asarray([0.1, -1e-40, 3e38])}
    average = power_ema([0.05, 0.1])
    state = average.update(average.init({"w": jnp.full(3, jnp.nan)}), value)
    for held in state.averages:
        np.testing.assert_array_equal(held["w"], value["w"])
    assert int(state.count) == 1


def test_an_average_of_a_constant_stays_it_to_the_bit():
    state = after(power_ema([0.05]), jnp.full((300, 2), 0.1))
    np.testing.assert_array_equal(state.averages[0]["w"], np.full(2, 0.1, np.float32))


def test_averages_keep_the_types_of_the_parameters_and_are_computed_in_float32():
    average = power_ema([0.1])
    random = np.random.default_rng(0)
    old, new = ({"a": jnp.asarray(random.standard_normal(500), jnp.bfloat16), "b": jnp.zeros(1)} for _ in range(2))
    moved = average.update(PowerEmaState((old,), jnp.asarray(49, jnp.int32)), new).averages[0]
    assert jax.tree.map(lambda leaf: leaf.dtype, moved) == jax.tree.map(lambda leaf: leaf.dtype, old)
    beta = (1 - 1 / 50) ** (width_to_exponent(0.1) + 1)
    exact = beta * np.asarray(old["a"], np.float64) + (1 - beta) * np.asarray(new["a"], np.float64)
    # Rounded once, to 8 bits.
    np.testing.assert_allclose(np.asarray(moved["a"], np.float64), exact, rtol=1.01 * 2**-8, atol=1e-6)


def test_seeds_averaged_together_equal_seeds_averaged_alone():
    values = jnp.asarray(np.random.default_rng(0).standard_normal((20, 3, 4)), jnp.float32)
    average = power_ema([0.05, 0.15])
    together = jax.vmap(lambda of: after(average, of), in_axes=1)(values)
    assert together.count.shape == (3,)
    for seed in range(3):
        # The same operations on each number, which another program may fuse otherwise.
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, seed=seed: leaf[seed], together), after(average, values[:, seed]), rtol=1e-6
        )


def test_averages_lie_on_a_mesh_as_the_parameters_do():
    params = {"kernel": jnp.zeros((4, 64, 32))}  # stacked over seeds
    average = power_ema([0.05, 0.1])
    state = create(jax.random.split(jax.random.key(0), 4), params, ema=jax.vmap(average.init)(params))
    assert jax.tree.structure(SEED_AXES._replace(params={"kernel": 0}).params) == jax.tree.structure(params)
    axes = {"kernel": jax.P("inputs", "hidden")}
    shardings = state_shardings(state, make_mesh("data=4,model=2"), axes)
    for held in shardings.ema.averages:
        assert held["kernel"].spec == shardings.params["kernel"].spec == jax.P(None, None, "model")


def test_the_update_lowers_for_every_platform_in_single_precision():
    average = power_ema([0.05, 0.1])
    params = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
    state = jax.eval_shape(average.init, params)
    exported = jax.export.export(jax.jit(average.update), platforms=["cpu", "cuda", "tpu"])(state, params)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "f64" not in exported.mlir_module()
