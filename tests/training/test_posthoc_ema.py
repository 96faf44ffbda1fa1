import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from threadpoolctl import threadpool_limits

from jaxgen.training import combine, make_mesh, posthoc_coefficients, profile_error, profile_product, width_to_exponent

WIDTHS = [0.05, 0.1]


def snapshots(times, widths=WIDTHS):
    return np.repeat(np.asarray(times, np.float64), len(widths)), np.tile(widths, len(times))


@pytest.mark.parametrize(
    ("first", "second"), [((1.0, 6.9), (2.0, 16.9)), ((2.0, 0.7), (1.5, 3.0)), ((3.0, 2.0), (3.0, 0.0))]
)
def test_products_are_the_integrals_of_the_profiles(first, second):
    def profile(t, end, gamma):
        return (gamma + 1) * t**gamma / end ** (gamma + 1)

    integral = quad(lambda t: profile(t, *first) * profile(t, *second), 0, min(first[0], second[0]), epsabs=1e-13)[0]
    np.testing.assert_allclose(profile_product(*first, *second), integral, rtol=1e-10)
    np.testing.assert_allclose(profile_product(*second, *first), integral, rtol=1e-10)


def test_all_pairs_are_one_broadcast():
    times, gammas = np.array([1.0, 2.0, 2.0]), np.array([3.0, 0.5, 7.0])
    table = profile_product(times[:, None], gammas[:, None], times[None], gammas[None])
    one_by_one = [
        [float(profile_product(times[i], gammas[i], times[j], gammas[j])) for j in range(3)] for i in range(3)
    ]
    np.testing.assert_array_equal(table, one_by_one)


def test_coefficients_of_four_averages():
    coefficients = posthoc_coefficients([1, 1, 2, 2], [0.05, 0.1, 0.05, 0.1], 2, 0.075)
    np.testing.assert_allclose(coefficients, [1.35748281e-4, -2.42662683e-3, 0.342969036, 0.659321843], rtol=2e-9)


def test_a_stored_profile_has_a_unit_vector():
    times, widths = snapshots([100, 200, 300])
    for index in range(6):
        expected = np.zeros(6)
        expected[index] = 1
        np.testing.assert_array_equal(posthoc_coefficients(times, widths, times[index], widths[index]), expected)
        # And so it is as a limit, where nothing is looked up.
        near = posthoc_coefficients(times, widths, times[index], widths[index] * (1 + 1e-12))
        np.testing.assert_allclose(near, expected, atol=1e-9)


def test_what_is_later_than_the_target_is_left_out():
    times, widths = snapshots([100, 200, 300])
    coefficients = posthoc_coefficients(times, widths, 250, 0.08)
    np.testing.assert_array_equal(coefficients[4:], 0)
    np.testing.assert_array_equal(coefficients[:4], posthoc_coefficients(times[:4], widths[:4], 250, 0.08))


def test_the_combination_is_the_nearest_profile():
    """Any other combination of profiles is farther from the target, by least squares on a fine grid."""
    times, widths = snapshots([1.0, 2.0, 3.0, 4.0])
    gammas = [width_to_exponent(width) for width in widths]
    grid = (np.arange(200_000) + 0.5) / 50_000
    profiles = np.stack(
        [np.where(grid < end, (g + 1) * (grid / end) ** g / end, 0) for end, g in zip(times, gammas, strict=True)], 1
    )
    gamma = width_to_exponent(0.08)
    wanted = (gamma + 1) * (grid / 4) ** gamma / 4
    fitted = np.linalg.lstsq(profiles, wanted, rcond=None)[0]
    # The midpoint rule at 20 microseconds a step, through a matrix of condition 100.
    np.testing.assert_allclose(posthoc_coefficients(times, widths, 4, 0.08), fitted / fitted.sum(), atol=1e-5)


targets = st.floats(0.04, 0.25)
ends = st.lists(st.integers(1, 1000), min_size=1, max_size=12, unique=True)


@given(ends, targets)
def test_coefficients_sum_to_one(times, width):
    coefficients = posthoc_coefficients(*snapshots(times), max(times), width)
    assert abs(coefficients.sum() - 1) < 1e-12 * max(1, np.abs(coefficients).sum())


@given(ends, targets, st.floats(1e-3, 1e6))
def test_only_ratios_of_times_matter(times, width, unit):
    stored, widths = snapshots(times)
    coefficients = posthoc_coefficients(stored, widths, max(times), width)
    scaled = posthoc_coefficients(stored * unit, widths, max(times) * unit, width)
    # Roundings of the times, through a matrix whose condition grows to 1e7 where times differ by 1 in 1000.
    np.testing.assert_allclose(scaled, coefficients, atol=1e-7 * max(1, np.abs(coefficients).sum()))


@given(st.permutations(range(8)), targets)
def test_the_order_does_not_matter(order, width):
    times, widths = snapshots([1, 2, 3, 4])
    coefficients = posthoc_coefficients(times, widths, 4, width)
    order = np.array(order)
    permuted = posthoc_coefficients(times[order], widths[order], 4, width)
    np.testing.assert_allclose(permuted, coefficients[order], atol=1e-12)


def test_128_snapshots_are_solved_in_50_milliseconds():
    times, widths = snapshots(np.arange(1, 129) * 1000)
    seconds = []
    # One thread: those of BLAS spin while they wait for a processor that others use. About 1 ms measured.
    with threadpool_limits(1):
        for _ in range(5):
            begin = time.process_time()
            posthoc_coefficients(times, widths, 128_000, 0.08)
            seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.05


MANY = snapshots(np.arange(1, 129), [0.03, 0.05, 0.1, 0.2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 1, 0.1), "got 0 times and 0 widths"),
        (([1, 2], [0.1], 2, 0.1), "got 2 times and 1 widths"),
        (([1, 2, 1], [0.1, 0.1, 0.1], 2, 0.05), "width 0.1 at time 1.0 occurs more than once"),
        (([1, 0], [0.1, 0.1], 2, 0.05), r"times must be above 0 and finite, got \[1.0, 0.0\]"),
        (([1, np.inf], [0.1, 0.1], 2, 0.05), "times must be above 0 and finite"),
        (([1, 2], [0.1, 0.3], 2, 0.05), "must lie in .*, got 0.3"),
        (([1, 2], [0.1, 0.1], 2, 0.0), "must lie in .*, got 0.0"),
        (([1, 2], [0.1, 0.1], 2, 0.29), "must lie in .*, got 0.29"),
        (([1, 2], [0.1, 0.1], np.nan, 0.1), "target_time must be above 0 and finite, got nan"),
        (([1, 2], [0.1, 0.1], 0.5, 0.1), "target_time must be at least 1.0, the first time stored, got 0.5"),
        (([1, 2, 2], [0.05, 0.05, 0.05 + 1e-9], 2, 0.08), "cannot be combined .* almost the same"),
        ((*MANY, 128, 0.01), "cannot be combined .* choose a width nearer"),
    ],
)
def test_what_cannot_be_combined_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        posthoc_coefficients(*arguments)


def test_a_combination_is_summed_in_double_precision():
    # In float32 the small number would be lost beside the large one.
    trees = [{"a": jnp.asarray([1e8, 1.0])}, {"a": jnp.asarray([1.25, 1.0])}, {"a": jnp.asarray([-1e8, 1.0])}]
    combined = combine([1.0, 1.0, 1.0], iter(trees))
    np.testing.assert_array_equal(combined["a"], [1.25, 3.0])
    assert combined["a"].dtype == jnp.float32
    # And so would the products with the coefficients.
    assert abs(float(combine([0.3, -0.2, -0.1], [jnp.asarray(1e8)] * 3))) < 1e-8


def test_types_and_places_are_those_of_the_trees():
    mesh = make_mesh("data=4")
    split, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    rows = np.arange(8, dtype=np.float32)
    tree = {
        "split": jax.device_put(rows, split),
        "whole": jax.device_put(rows, whole),
        "half": jnp.ones(2, jnp.bfloat16),
        "host": rows,
        "scalar": jnp.asarray(2.0),
    }
    combined = combine(np.array([0.5, 1.0]), [tree, tree])
    for name in ("split", "whole"):
        assert combined[name].sharding == tree[name].sharding
        np.testing.assert_array_equal(combined[name], 1.5 * rows)
    assert combined["half"].dtype == jnp.bfloat16
    assert isinstance(combined["host"], np.ndarray)
    np.testing.assert_array_equal(combined["host"], 1.5 * rows)
    assert float(combined["scalar"]) == 3.0


def test_one_tree_is_held_at_a_time():
    class Array(np.ndarray):
        """What a weak reference can be made to."""

    def trees():
        earlier = None
        for value in range(4):
            assert earlier is None or earlier() is None
            leaf = np.full(3, value, np.float32).view(Array)
            earlier = weakref.ref(leaf)
            # Nothing of this generator holds the array while it waits.
            held = [{"w": leaf}]
            del leaf
            yield held.pop()

    np.testing.assert_array_equal(combine([1, 1, 1, 1], trees())["w"], np.full(3, 6.0))


def test_coefficients_and_trees_have_to_be_as_many():
    tree = {"w": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="at least one coefficient"):
        combine([], [])
    with pytest.raises(ValueError, match="2 coefficients but 1 trees"):
        combine([0.5, 0.5], [tree])
    with pytest.raises(ValueError, match="1 coefficients but more trees"):
        combine([1.0], [tree, tree])
    with pytest.raises(ValueError, match=r"different shapes, \(2,\) and \(1,\)"):
        combine([0.5, 0.5], [tree, {"w": np.ones(1, np.float32)}])


def test_the_error_of_a_profile_is_that_of_quadrature():
    times, widths = [1.0, 1.0, 2.0, 2.0], [0.05, 0.1, 0.05, 0.1]
    grid = (np.arange(400_000) + 0.5) / 200_000  # midpoints of [0, 2]
    for target_time, target_width in ((2.0, 0.15), (2.0, 0.03), (1.5, 0.1)):
        coefficients = posthoc_coefficients(times, widths, target_time, target_width)

        def profile(time, width):
            gamma = width_to_exponent(width)
            return np.where(grid <= time, (gamma + 1) / time * (grid / time) ** gamma, 0.0)

        wanted = profile(target_time, target_width)
        made = sum(c * profile(t, w) for c, t, w in zip(coefficients, times, widths, strict=True))
        expected = np.sqrt(np.sum((made - wanted) ** 2) / np.sum(wanted**2))
        found = profile_error(coefficients, times, widths, target_time, target_width)
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # of the quadrature, at the jumps
    assert profile_error(np.array([0.0, 0.0, 0.0, 1.0]), times, widths, 2.0, 0.1) < 1e-7
