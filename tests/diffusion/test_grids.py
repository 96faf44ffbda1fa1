import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config

from jaxgen.diffusion import (
    EDM,
    Cosine,
    Level,
    RectifiedFlow,
    VariancePreservingLinear,
    check_grid,
    karras_grid,
    level_at,
    sigma_grid,
    time_grid,
    uniform_grid,
)

SCHEDULES = (VariancePreservingLinear(), Cosine(), EDM(), RectifiedFlow())

# Falling sigmas of 2 to 20 entries, whose steps are at least a relative 1e-6.
FALLING_SIGMAS = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=20).map(lambda steps: np.cumsum(steps)[::-1])


@pytest.fixture
def unchecked_types():
    """Lift the type checks that only the tests have, which would hide what a user sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def levels(sigma, *, time=None, alpha=None):
    sigma = np.asarray(sigma, np.float64)
    return Level(
        np.linspace(1.0, 0.0, len(sigma)) if time is None else np.asarray(time),
        np.ones_like(sigma) if alpha is None else np.asarray(alpha),
        sigma,
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_uniform_grid_has_equal_time_steps_on_the_schedule(schedule):
    for start, stop in ((1.0, 0.0), (0.0, 1.0), (0.25, 0.75)):
        grid = uniform_grid(schedule, 7, start=start, stop=stop)
        times = np.array([start + (stop - start) * n / 7 for n in range(8)])
        np.testing.assert_allclose(grid.time, times, rtol=0, atol=2e-16)
        np.testing.assert_array_equal(grid.alpha, schedule.alpha(grid.time))
        np.testing.assert_array_equal(grid.sigma, schedule.sigma(grid.time))
        assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in grid)
        assert (grid.time[0], grid.time[-1]) == (start, stop)


def test_uniform_grids_of_a_thousand_steps_end_exactly_at_the_data():
    for schedule in SCHEDULES:
        grid = uniform_grid(schedule, 1000)
        assert (grid.alpha[-1], grid.sigma[-1]) == (1.0, 0.0)
        assert grid.sigma.shape == (1001,)


def test_karras_sigmas_follow_the_published_formula():
    # Karras et al. 2022, eq. 5, one sigma at a time: (s_max^(1/7) + i / (n - 1) (s_min^(1/7) - s_max^(1/7)))^7.
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    grid = karras_grid(18)
    np.testing.assert_allclose(grid.sigma, [*((high + i / 17 * (low - high)) ** 7 for i in range(18)), 0.0], rtol=1e-13)
    np.testing.assert_array_equal(grid.alpha, 1.0)
    np.testing.assert_allclose(EDM(80.0).sigma(grid.time), grid.sigma, rtol=1e-15)
    assert grid.sigma.dtype == np.float64


def test_karras_grid_of_another_range_and_power():
    np.testing.assert_allclose(karras_grid(3, sigma_min=1.0, sigma_max=9.0, rho=2.0).sigma, [9, 4, 1, 0], rtol=1e-15)
    np.testing.assert_allclose(karras_grid(1, sigma_max=5.0).sigma, [5, 0], rtol=1e-15)


@settings(deadline=None)
@given(FALLING_SIGMAS)
def test_monotone_grids_pass_in_both_directions(sigmas):
    for grid in (sigma_grid(sigmas), sigma_grid(sigmas[::-1])):
        check_grid(grid, divides_by_alpha=True)
        assert grid.time.max() == 1.0
        np.testing.assert_allclose(grid.time * sigmas.max(), grid.sigma, rtol=1e-15)
    # In the ratio sigma / alpha, on which samplers depend, alpha may carry the order just as well.
    check_grid(levels(np.ones(len(sigmas)), alpha=sigmas[::-1]))


@settings(deadline=None)
@given(FALLING_SIGMAS.filter(lambda sigmas: len(sigmas) > 2), st.data())
def test_a_grid_that_turns_is_refused_with_the_place(sigmas, data):
    at = data.draw(st.integers(1, len(sigmas) - 2))
    # Above all entries before it, so that the step into it is the first one that rises.
    sigmas[at] = sigmas[0] + 1.0 + at
    # Where already the first step rises, the grid is taken for a rising one, and the next step is the culprit.
    place = at - 1 if at > 1 else 1
    with pytest.raises(ValueError, match=f"between entries {place} and {place + 1} "):
        sigma_grid(sigmas)


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ([3, 2, 2, 1], "between entries 1 and 2 sigma goes from 2 to 2 at alpha 1 to 1"),
        ([1, 2, 3, 2.5], "between entries 2 and 3 sigma goes from 3 to 2.5 at alpha 1 to 1"),
        ([2, 2, 1], "between entries 0 and 1 sigma goes from 2 to 2 at alpha 1 to 1"),
        ([0, 0], "between entries 0 and 1 sigma goes from 0 to 0 at alpha 1 to 1"),
    ],
)
def test_repeats_and_turns_are_refused(sigmas, sentence):
    with pytest.raises(ValueError) as caught:
        sigma_grid(np.array(sigmas))
    expected = f"a grid must be strictly monotone in sigma / alpha, but {sentence}; sort it, drop repeats"
    assert str(caught.value) == expected


@pytest.mark.parametrize("steps", [0, -3, True, 2.0, np.float64(4), "5", None])
@pytest.mark.parametrize("build", [lambda steps: uniform_grid(Cosine(), steps), karras_grid])
def test_steps_that_are_no_positive_integer_are_refused(build, steps, unchecked_types):
    with pytest.raises(ValueError) as caught:
        build(steps)
    assert str(caught.value) == f"steps must be an integer of at least 1, got {steps!r}"


def test_numpy_integers_are_steps(unchecked_types):
    np.testing.assert_array_equal(karras_grid(np.int64(4)).sigma, karras_grid(4).sigma)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("time", [-0.25, 1.5, np.inf])
def test_times_outside_the_unit_interval_are_refused(schedule, time):
    with pytest.raises(ValueError) as caught:
        time_grid(schedule, np.array([0.75, 0.5, time]))
    assert str(caught.value) == f"times must lie in [0, 1], got {time:g}; rescale the schedule's time to this range"
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1\], got -0.25"):
        uniform_grid(schedule, 3, start=0.5, stop=-0.25)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1\], got 1000"):
        check_grid(levels([2.0, 1.0], time=[1000.0, 0.0]))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: sigma_grid(np.array([np.inf, 1.0, 0.0])),
        lambda: sigma_grid(np.array([2.0, np.nan, 0.0])),
        lambda: sigma_grid(np.array([1.0, -1.0])),
        lambda: time_grid(Cosine(), np.array([1.0, np.nan, 0.0])),
        lambda: check_grid(levels([2.0, 1.0], alpha=[-1.0, 1.0])),
        lambda: check_grid(levels([2.0, 1.0], alpha=[np.inf, 1.0])),
    ],
)
def test_values_that_are_not_finite_or_negative_are_refused(bad):
    with pytest.raises(ValueError) as caught:
        bad()
    assert str(caught.value) == (
        "a grid needs finite times and finite, non-negative alpha and sigma; one of them is not"
    )


@pytest.mark.parametrize(
    ("grid", "shapes"),
    [
        (levels([1.0]), "(1,), (1,) and (1,)"),
        (levels([]), "(0,), (0,) and (0,)"),
        (levels([2.0, 1.0], alpha=np.ones(3)), "(2,), (3,) and (2,)"),
        (Level(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2))), "(2, 2), (2, 2) and (2, 2)"),
        (Level(1.0, 1.0, 1.0), "(), () and ()"),
    ],
)
def test_shapes_that_make_no_grid_are_refused(grid, shapes):
    with pytest.raises(ValueError) as caught:
        check_grid(grid)
    assert str(caught.value) == (
        f"a grid needs time, alpha and sigma of one common length of at least 2, got shapes {shapes}"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sigma_min": 0.0}, "sigmas must satisfy 0 < sigma_min < sigma_max, got 0.0 and 80.0"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigmas must satisfy 0 < sigma_min < sigma_max, got 2.0 and 1.0"),
        ({"sigma_max": np.inf}, "sigmas must satisfy 0 < sigma_min < sigma_max, got 0.002 and inf"),
        ({"sigma_min": np.nan}, "sigmas must satisfy 0 < sigma_min < sigma_max, got nan and 80.0"),
        ({"rho": 0.0}, "rho must be positive and finite, got 0.0"),
        ({"rho": np.inf}, "rho must be positive and finite, got inf"),
    ],
)
def test_karras_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError) as caught:
        karras_grid(4, **options)
    assert str(caught.value) == sentence


def test_pure_noise_is_refused_for_a_network_that_divides_by_alpha():
    for schedule in (Cosine(), RectifiedFlow()):
        grid = uniform_grid(schedule, 4)
        check_grid(grid)
        with pytest.raises(ValueError) as caught:
            check_grid(grid, divides_by_alpha=True)
        assert str(caught.value) == (
            "a network that predicts the noise says nothing about x0 at alpha = 0, which this grid contains; "
            "start below t = 1 or predict x0, v or the velocity"
        )
        check_grid(uniform_grid(schedule, 4, start=0.999), divides_by_alpha=True)
    check_grid(uniform_grid(VariancePreservingLinear(), 4), divides_by_alpha=True)


def test_traced_grids_pass_and_known_ones_are_checked_under_jit():
    repeated = levels([1.0, 1.0])

    @jax.jit
    def last(grid):
        check_grid(grid, divides_by_alpha=True)
        return grid.sigma[-1]

    assert last(repeated) == 1.0
    with pytest.raises(ValueError, match="strictly monotone"):
        jax.jit(lambda x: (check_grid(repeated), x)[1])(1.0)


def test_jax_arrays_make_a_grid():
    check_grid(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), karras_grid(40)))
    with pytest.raises(ValueError, match="strictly monotone"):
        # Steps that float32 does not resolve.
        check_grid(level_at(RectifiedFlow(), jnp.float32(1.0) - 1e-9 * jnp.arange(3.0)))
