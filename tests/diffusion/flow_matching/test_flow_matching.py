"""Flow matching against transport maps in closed form, quadrature, scipy's assignments and the diffusion flow."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import PLATFORMS, constant_bytes
from scipy.integrate import solve_ivp
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

from jaxgen.diffusion import (
    Level,
    Prediction,
    VariancePreservingLinear,
    denoiser,
    diagonal_mixture,
    heun,
    predict_exactly,
    predict_from_points,
    trajectory,
    uniform_grid,
)
from jaxgen.diffusion.flow_matching import (
    ddim_flow,
    diffusion_coupling,
    diffusion_marginal_flow,
    flow_matching_loss,
    independent_coupling,
    linear_diffusion_marginal_flow,
    linear_flow,
    linear_marginal_flow,
    marginal_velocity,
    minibatch_optimal_transport,
    run_flow,
    trace_flow,
)

SIGMA_Q = 5.0
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.7, 0.5])


def gaussian(x, level):
    """The exact denoiser of N(0, 1)."""
    total = level.alpha**2 + level.sigma**2
    return Prediction(level.alpha * x / total, level.sigma * x / total)


def mixture(x, level):
    law = diagonal_mixture(WEIGHTS, MEANS[:, None], STDS[:, None] ** 2)
    return predict_exactly(law, x, level)


@pytest.mark.parametrize("flow", [linear_flow, ddim_flow])
def test_a_pointwise_flow_leads_from_base_to_data_along_its_velocity(flow):
    with jax.enable_x64(True):
        x1, x0 = jnp.array([3.0, -1.0]), jnp.array([0.5, 2.0])
        chex.assert_trees_all_close(flow.position(x1, x0, 1.0), x1)
        chex.assert_trees_all_close(flow.position(x1, x0, 0.0), x0)
        slope = jax.jvp(lambda t: flow.position(x1, x0, t), (0.3,), (1.0,))[1]
        chex.assert_trees_all_close(flow.velocity(x1, x0, 0.3), -slope, rtol=1e-13)


def test_the_velocity_of_ddim_is_the_step_to_the_data_over_twice_the_time():
    x1, x0, t = jnp.array(3.0), jnp.array(0.5), 0.3
    x = ddim_flow.position(x1, x0, t)
    chex.assert_trees_all_close(ddim_flow.velocity(x1, x0, t), (x0 - x) / (2 * t), rtol=1e-6)


def solved(velocity, start, times):
    """dx/dt = -v by scipy, at falling times from the first."""
    fast = jax.jit(lambda x, t: velocity(x, t))
    slope = lambda t, x: -np.asarray(fast(jnp.asarray(x), t))  # noqa: E731
    result = solve_ivp(slope, (times[0], times[-1]), [start], t_eval=times, method="DOP853", rtol=1e-12, atol=1e-13)
    return result.y[0]


def test_ddim_is_the_linear_flow_under_the_diffusion_coupling_at_the_root_of_its_time():
    # On N(0, 1) both have closed forms: y_t = x sqrt((1 + 25 t) / 26) and z_s = x sqrt((1 + 25 s^2) / 26).
    with jax.enable_x64(True):
        y = solved(diffusion_marginal_flow(gaussian, SIGMA_Q), 3.0, [1.0, 0.09])[-1]
        z = solved(linear_diffusion_marginal_flow(gaussian, SIGMA_Q), 3.0, [1.0, 0.3])[-1]
        assert y == pytest.approx(1.0606601717798214, rel=1e-10)
        assert z == pytest.approx(1.0606601717798214, rel=1e-10)
        times = np.array([1.0, 0.6, 0.25, 0.04])
        y = solved(diffusion_marginal_flow(mixture, SIGMA_Q), 4.0, times)
        z = solved(linear_diffusion_marginal_flow(mixture, SIGMA_Q), 4.0, np.sqrt(times))
        np.testing.assert_allclose(y, z, atol=1e-9)


def test_the_linear_flow_of_an_independent_base_is_monotone_transport_on_gaussians():
    # On N(m, s^2) the marginal flow is x -> m + s x, whatever the base does in between.
    law = lambda x, level: predict_exactly(diagonal_mixture([1.0], [[2.0]], [[0.09]]), x, level)  # noqa: E731
    with jax.enable_x64(True):
        ends = [solved(linear_marginal_flow(law), x, [1.0, 0.0])[-1] for x in (-1.0, 0.5)]
        np.testing.assert_allclose(ends, [2.0 - 0.3, 2.0 + 0.15], atol=1e-9)
        wide = solved(linear_marginal_flow(law, base_std=4.0), 2.0, [1.0, 0.0])[-1]
        assert wide == pytest.approx(2.0 + 0.3 * 2.0 / 4.0, abs=1e-9)


def test_the_flow_of_a_variance_preserving_path_is_no_linear_flow_from_the_same_ends():
    # Largest distance, over 64 normal quantiles as starts, from x_t to the nearest time of the flow between its ends.
    # It grows with the outermost quantile, so the rule for quantiles is part of the number: median ranks come first.
    schedule, numbers = VariancePreservingLinear(), np.arange(1, 65)
    start = norm.ppf(np.concatenate([(numbers - 0.3) / 64.4, (numbers - 0.5) / 64, numbers / 65]))
    curved = uniform_grid(schedule, 1000)
    times, alpha, sigma = curved.time, curved.alpha[0], curved.sigma[0]
    straight = Level(times, 1 - times + times * alpha, times * sigma)
    with jax.enable_x64(True):
        follow = jax.jit(lambda x, grid: trajectory(heun(denoiser(mixture)), jax.random.key(0), x, grid)[0])
        x, z = (
            np.asarray(jax.vmap(follow, (0, None))(jnp.asarray(start[:, None]), grid))[:, ::2, 0]
            for grid in (curved, straight)
        )
    assert np.abs(x[:, -1] - z[:, -1]).max() < 1e-3  # one map from base to data, in one dimension
    # scipy's DOP853 at 1,500 times and more gives these; the 500 times here miss the largest by less than 1.5e-3.
    for first, expected in ((0, 0.5375), (64, 0.5543), (128, 0.5147)):
        rows = slice(first, first + 64)
        distance = np.abs(x[rows, :, None] - z[rows, None, :]).max(axis=0).min(axis=1).max()
        assert distance == pytest.approx(expected, abs=1.5e-3)


def test_flows_combine_by_their_densities_and_not_by_their_weights():
    # Two pointwise flows with starts N(2, .2^2) and N(-1, .5^2) that move at 1 and -2: what passes x comes from both.
    weights, means, stds, speeds = (
        np.array([0.4, 0.6]),
        np.array([2.0, -1.0]),
        np.array([0.2, 0.5]),
        np.array([2.5, -1]),
    )
    quantiles = norm.ppf((np.arange(200) + 0.5) / 200)
    start = np.concatenate([means[k] + stds[k] * quantiles for k in (0, 1)])
    mass = np.repeat(weights / 200, 200)

    def log_densities(x, t):
        z = (np.asarray(x)[..., None] - means - speeds * (1 - t)) / stds
        return np.log(weights / stds) - 0.5 * z**2

    def moments(rule):
        x, steps = start.copy(), 400
        for n in range(steps):
            t = 1 - n / steps
            x += rule(x, t) / steps
        return mass @ x, mass @ x**2

    combine = jax.jit(lambda logs: marginal_velocity(logs, jnp.asarray(speeds)))
    with jax.enable_x64(True):
        logs = log_densities([-1.0, 0.2, 1.4], 0.7)
        found = [float(combine(row)) for row in logs]
        shares = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found, shares @ speeds, rtol=1e-12)

    def by_density(x, t):
        densities = np.exp(log_densities(x, t))
        return densities @ speeds / densities.sum(axis=-1)

    ends = means + speeds
    expected = weights @ ends, weights @ (ends**2 + stds**2)
    # 400 Euler steps and quantiles for normal laws: a few thousandths.
    np.testing.assert_allclose(moments(by_density), expected, rtol=0.01)
    assert abs(moments(lambda x, t: weights @ speeds)[1] - expected[1]) > 0.2


@pytest.mark.parametrize(
    ("build", "flow", "coupled", "std"),
    [
        (linear_marginal_flow, linear_flow, False, lambda t: t),
        (linear_diffusion_marginal_flow, linear_flow, True, lambda t: t),
        (diffusion_marginal_flow, ddim_flow, True, np.sqrt),
    ],
)
def test_the_flow_to_a_set_of_points_is_the_mean_over_the_pairs_that_pass(build, flow, coupled, std):
    # Given x_t, each point leaves one possible partner in the base; it passes with the density of x_t around it.
    points, x, t = np.array([[-1.0, 0.3], [1.5, 0.0], [0.2, -2.0]]), np.array([0.4, -0.9]), 0.35
    spread = SIGMA_Q * std(t)
    pull = 1.0 if coupled else 1.0 - t
    moved = (x - pull * points) / std(t)  # the noise x1 - x0 of the diffusion coupling, or x1
    partners = points + moved if coupled else moved
    with jax.enable_x64(True):
        for x1, x0 in zip(partners, points, strict=True):
            chex.assert_trees_all_close(np.asarray(flow.position(x1, x0, t)), x, rtol=1e-12)
        velocities = jnp.stack([flow.velocity(x1, x0, t) for x1, x0 in zip(partners, points, strict=True)])
        logs = -0.5 * np.sum((x - pull * points) ** 2, axis=1) / spread**2
        expected = marginal_velocity(jnp.asarray(logs), velocities)
        predict = lambda x, level: predict_from_points(jnp.asarray(points), x, level)  # noqa: E731
        found = build(predict, SIGMA_Q)(jnp.asarray(x), t)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    shares = np.exp(logs) / np.exp(logs).sum()
    assert 0.02 < shares.min() < shares.max() < 0.98  # no point alone decides
    np.testing.assert_allclose(expected, shares @ np.asarray(velocities), rtol=1e-12)


def test_flows_and_assignments_lower_for_every_platform_without_large_constants():
    def both(means, base, data, times):
        x1, _ = minibatch_optimal_transport(base, data)
        velocity = linear_marginal_flow(lambda x, level: predict_from_points(means, x, level))
        return jax.vmap(lambda x: run_flow(velocity, x, times))(x1)

    shape = jax.ShapeDtypeStruct((16, 2), jnp.float32)
    arguments = (shape, shape, shape, jax.ShapeDtypeStruct((9,), jnp.float32))
    exported = jax.export.export(jax.jit(both), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    assert "f64" not in exported.mlir_module()
    assert constant_bytes(jax.jit(both).lower(*arguments)) < 10_000


def test_minibatch_transport_is_the_assignment_of_scipy():
    solve = jax.jit(minibatch_optimal_transport)
    for seed in range(5):
        random = np.random.default_rng(seed)
        base, data = (random.standard_normal((12, 2)).astype(np.float32) for _ in range(2))
        x1, x0 = solve(jnp.asarray(base), jnp.asarray(data))
        costs = ((base[:, None] - data[None]) ** 2).sum(-1)
        rows, columns = linear_sum_assignment(costs)
        np.testing.assert_array_equal(x1, base)
        assert float(((x1 - x0) ** 2).sum()) == pytest.approx(costs[rows, columns].sum(), rel=1e-5)
        assert sorted(map(tuple, np.asarray(x0))) == sorted(map(tuple, data))


def test_minibatch_transport_on_a_line_sorts():
    base, data = jnp.array([[3.0], [-1.0], [0.5]]), jnp.array([[10.0], [30.0], [20.0]])
    chex.assert_trees_all_equal(minibatch_optimal_transport(base, data)[1], jnp.array([[30.0], [10.0], [20.0]]))
    brute = min(
        (sum((base[i, 0] - data[p, 0]) ** 2 for i, p in enumerate(order)), order)
        for order in itertools.permutations(range(3))
    )
    assert brute[1] == (1, 0, 2)


def test_couplings_have_their_laws():
    data = jnp.arange(8.0)[:, None]
    x1, x0 = diffusion_coupling(jax.random.key(0), jnp.broadcast_to(data, (8, 5000)), SIGMA_Q)
    chex.assert_trees_all_equal(x0, jnp.broadcast_to(data, (8, 5000)))
    assert float(jnp.std(x1 - x0)) == pytest.approx(SIGMA_Q, rel=0.02)  # 40,000 draws: 0.35 %
    base, paired = independent_coupling(jax.random.key(1), data, data)
    chex.assert_trees_all_equal(base, data)
    assert sorted(np.asarray(paired).ravel()) == list(range(8))
    assert not np.array_equal(paired, data)


def test_the_loss_is_least_at_the_marginal_velocity():
    keys = jax.random.split(jax.random.key(3), 100_000)
    velocity = linear_marginal_flow(gaussian)

    def mean_loss(factor):
        def one(key):
            a, b, c = jax.random.split(key, 3)
            pair = jax.random.normal(a, (1,)), jax.random.normal(b, (1,))
            return flow_matching_loss(lambda x, t: factor * velocity(x, t), linear_flow, *pair, jax.random.uniform(c))

        return float(jnp.mean(jax.vmap(one)(keys)))

    # Var(x0 - x1 | x_t) = 2 - (1 - 2 t)^2 / (t^2 + (1 - t)^2) for standard normal ends; its mean over t is pi / 2.
    assert mean_loss(1.0) == pytest.approx(np.pi / 2, rel=0.02)
    assert min(mean_loss(0.5), mean_loss(1.5)) > mean_loss(1.0)


def test_running_a_flow_is_the_eulers_sum_and_keeps_its_trace():
    times = np.array([1.0, 0.7, 0.2, 0.0])
    velocity = lambda x, t: t * x  # noqa: E731
    expected, x = [2.0], 2.0
    for now, next in itertools.pairwise(times):
        x += now * x * (now - next)
        expected.append(x)
    trace = trace_flow(velocity, jnp.array(2.0), times)
    np.testing.assert_allclose(trace, expected, rtol=1e-6)
    chex.assert_trees_all_equal(run_flow(velocity, jnp.array(2.0), times), trace[-1])
    back = run_flow(
        lambda x, t: jnp.ones_like(x), run_flow(lambda x, t: jnp.ones_like(x), jnp.array(2.0), times), times[::-1]
    )
    assert float(back) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        (np.array([1.0]), "times must be a row of at least 2, got shape \\(1,\\)"),
        (np.array([1.0, 0.5, 0.5]), "times must be strictly monotone"),
        (np.array([1.0, 0.0, 0.5]), "times must be strictly monotone"),
    ],
)
def test_times_that_lead_nowhere_are_refused(times, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_flow(lambda x, t: x, jnp.ones(1), times)


def test_batches_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="both batches must have one shape, got \\(3, 1\\) and \\(2, 1\\)"):
        minibatch_optimal_transport(jnp.ones((3, 1)), jnp.ones((2, 1)))
