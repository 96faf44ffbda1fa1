"""Gradient flow against closed forms: where it goes, when it stops, and what it calls the place."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs import assert_portable

from jaxgen.flows.conserved import balance, drift
from jaxgen.flows.endings import Status, along, describe, require_finished
from jaxgen.flows.gradient_flow import gradient_flow

GAUSSIAN, WIDE = 294 / 0.19190508852558863, 4704 / 0.0479762721313971  # c1 at sigma 1 and 2, d = 5, T = 100
SAVES = np.array([0.0, 0.1, 0.5, 1.0])  # in units of t1
# c1, c2, quartic, a, b, t1: the scalar model of linear attention, whose loss falls without bound where quartic > 0.
MEMBERS = {
    "general": (2.0, 3.0, 0.0, 0.5, 1.5, 0.3),
    "equal": (2.0, 3.0, 0.0, 0.1, 0.1, 0.5),
    "negative": (2.0, 3.0, 0.0, -1.0, 0.2, 0.4),
    "falling": (1.0, 0.5, 0.0, 2.0, 0.5, 1.0),
    "gaussian": (GAUSSIAN, 294.0, 0.0, 0.1, 0.1, 2 / 294),
    "gaussian, unequal": (GAUSSIAN, 294.0, 0.0, 0.5, 1.5, 0.1 / 294),
    "sparse": (0.30625, 1.225, 0.0, 0.1, 0.1, 2 / 1.225),
    "converged": (2.0, 3.0, 0.0, 0.5, 1.5, 1000.0),
    "from zero": (2.0, 3.0, 0.0, 0.0, 0.0, 10.0),
    "from the saddle's side": (2.0, 3.0, 0.0, 0.3, -0.3, 100.0),
    "explodes": (1.0, 0.0, 1.0, 3.0, 0.0, 10.0),
    "not a number": (2.0, 3.0, 0.0, np.nan, 1.0, 10.0),
    "overflows at first, then stiff": (WIDE, 4704.0, 0.0, 2.0, 2.0, 20.0),
    "ends at no number": (2.0, 3.0, 0.0, 0.5, 1.5, np.nan),
}
# Computed from the closed form by another program.
PRODUCTS = {
    "general": 1.3791168863946,
    "equal": 0.1781838111823,
    "negative": 0.9119390620376,
    "falling": 0.5095563239176,
    "gaussian": 0.1439463643903172,
    "gaussian, unequal": 0.36398942676142454,
    "sparse": 0.48146713146122644,
}
STATUSES = {
    "converged": Status.MINIMUM,
    "from zero": Status.SADDLE,
    "from the saddle's side": Status.SADDLE,
    "explodes": Status.BLEW_UP,
    "not a number": Status.BLEW_UP,
    "overflows at first, then stiff": Status.FAILED,
    "ends at no number": Status.FAILED,
}
NAMES = list(MEMBERS)


def scalar_loss(c1, c2, quartic=0.0):
    return lambda p: 0.5 * (c2 - c1 * (p["a"] * p["b"])) ** 2 / c1 - 0.25 * quartic * p["a"] ** 4


def product(a, b, c1, c2, time):
    """The product a b of the closed form: a^2 - b^2 stays, and a b moves by a Riccati equation."""
    delta, limit = a * a - b * b, c2 / c1
    if delta == 0:
        return limit / (1 + (limit / (a * b) - 1) * np.exp(-2 * c2 * time))
    start, end = np.arcsinh(2 * a * b / abs(delta)), np.arcsinh(2 * limit / abs(delta))
    rate = c1 * np.sqrt(delta**2 + 4 * limit**2)
    ratio = np.exp(rate * time) * np.cosh((end + start) / 2) / np.sinh((end - start) / 2)
    sh, ch = np.sinh(end / 2), np.cosh(end / 2)
    return abs(delta) / 2 * np.sinh(2 * np.arctanh((ratio * sh - ch) / (sh + ratio * ch)))


@jax.jit
@jax.vmap
def scalar_flow(c1, c2, quartic, a, b, t1):
    loss = scalar_loss(c1, c2, quartic)
    save_at = t1 * jnp.asarray(SAVES, t1.dtype)
    return gradient_flow(loss, {"a": a, "b": b}, t1, save_at=save_at, max_steps=1000)


@pytest.fixture(scope="module")
def flows():
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, scalar_flow(*map(jnp.asarray, zip(*MEMBERS.values(), strict=True))))


@pytest.fixture(scope="module")
def flows32():
    columns = [jnp.asarray(column, jnp.float32) for column in zip(*MEMBERS.values(), strict=True)]
    return jax.tree.map(np.asarray, scalar_flow(*columns))


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_scalar_model_follows_its_closed_form(flows, name):
    index, (c1, c2, _, a, b, t1) = NAMES.index(name), MEMBERS[name]
    np.testing.assert_allclose((flows.params["a"] * flows.params["b"])[index], PRODUCTS[name], rtol=3e-8)
    saved = (flows.saves.values["a"] * flows.saves.values["b"])[index]
    # 1e-9 a step, over some hundred of them.
    np.testing.assert_allclose(saved, [product(a, b, c1, c2, t1 * share) for share in SAVES], rtol=3e-8)
    np.testing.assert_allclose(flows.saves.times[index], t1 * SAVES, rtol=1e-15)
    assert flows.saves.reached[index].all()
    assert flows.status[index] == Status.RUNNING
    assert flows.time[index] == flows.clock[index] == t1


def test_the_closed_form_of_the_tests_is_that_of_another_program():
    for name, expected in PRODUCTS.items():
        c1, c2, _, a, b, t1 = MEMBERS[name]
        np.testing.assert_allclose(product(a, b, c1, c2, t1), expected, rtol=1e-10)


def test_both_factors_are_those_of_another_program(flows):
    for name, a, b in (("general", 0.83875802, 1.64423691), ("negative", -1.22904426, -0.74199042)):
        index = NAMES.index(name)
        np.testing.assert_allclose([flows.params["a"][index], flows.params["b"][index]], [a, b], atol=2e-8)


def test_single_precision_stays_single_and_agrees(flows32):
    assert {leaf.dtype for leaf in jax.tree.leaves((flows32.params, flows32.time, flows32.saves.values))} == {
        np.dtype(np.float32)
    }
    got = (flows32.params["a"] * flows32.params["b"])[: len(PRODUCTS)]
    np.testing.assert_allclose(got, list(PRODUCTS.values()), rtol=2e-4)  # 1e-5 a step


def test_the_balance_is_conserved_to_the_tolerance_of_the_steps(flows):
    for name in PRODUCTS:
        index = NAMES.index(name)
        a, b = flows.saves.values["a"][index], flows.saves.values["b"][index]
        assert drift(a**2 - b**2, a[0] ** 2 + b[0] ** 2) < 2e-8


@pytest.mark.parametrize("precision", ["flows", "flows32"])
@pytest.mark.parametrize("name", STATUSES)
def test_members_of_one_batch_end_each_in_its_own_way(name, precision, request):
    flow = request.getfixturevalue(precision)
    index = NAMES.index(name)
    assert Status(flow.status[index]) == STATUSES[name]
    a, b, curvature = flow.params["a"][index], flow.params["b"][index], flow.curvature[index]
    small = 1e-7 if precision == "flows" else 1e-4
    if STATUSES[name] == Status.MINIMUM:
        np.testing.assert_allclose(a * b, 1.5, rtol=small)
        np.testing.assert_allclose(curvature, 0.0, atol=small)  # the flat direction
    if STATUSES[name] == Status.SADDLE:
        np.testing.assert_allclose([a, b, curvature], [0, 0, -3], atol=small)
    if STATUSES[name] in (Status.MINIMUM, Status.SADDLE):
        assert flow.gradient_norm[index] <= small
    if name == "overflows at first, then stiff":
        np.testing.assert_allclose(a * b, 4704 / WIDE, rtol=10 * small)


def test_after_the_end_later_saves_repeat_it(flows):
    index = NAMES.index("converged")
    assert flows.saves.reached[index].tolist() == [True, False, False, False]
    assert (flows.saves.times[index, 1:] == flows.time[index]).all()
    assert (flows.saves.values["a"][index, 1:] == flows.params["a"][index]).all()
    assert 1 < flows.time[index] < 5


def test_a_start_that_is_stationary_ends_at_once(flows):
    index = NAMES.index("from zero")
    assert (flows.time[index], flows.num_steps[index], flows.loss[index]) == (0, 0, 9 / 4)


def test_the_words_and_the_errors_name_the_end(flows):
    assert describe(flows) == "7 running, 2 saddle, 2 blew up, 2 failed, 1 minimum"
    member = [jax.tree.map(lambda leaf, i=i: leaf[i], flows) for i in range(len(NAMES))]
    assert [describe(one) for one in member[-7:-1]] == ["minimum", "saddle", "saddle", "blew up", "blew up", "failed"]
    assert require_finished(member[0]) is member[0]
    # da / dt = a^3 from 3 is infinite at 1 / (2 * 9).
    with pytest.raises(FloatingPointError, match=re.escape("the flow blew up at time 0.0555556")):
        require_finished(member[10])
    with pytest.raises(FloatingPointError, match=re.escape("(member 10)")):
        require_finished(flows)
    expected = "the solver gave up at 0.[0-9]+ after 10[0-9]+ steps: raise max_steps or the tolerances"
    with pytest.raises(RuntimeError, match=expected):
        require_finished(member[12])


# A quadratic loss over arrays of three shapes: every eigenvalue its own exponential.
RATES = {"matrix": np.array([[0.5, 1.0, 2.0], [3.0, 0.1, 1.5]]), "scalar": np.array(2.0), "vector": np.arange(4.0)}
START = {"matrix": np.ones((2, 3)), "scalar": np.array(-1.0), "vector": np.array([1.0, 2.0, 3.0, 4.0])}
MASK = {"matrix": np.array([[1, 1, 0], [1, 1, 1]]), "scalar": np.array(1), "vector": np.array([1, 1, 0, 1])}
TIMES = np.array([0.25, 1.0, 1.7])


def quadratic(params):
    return 0.5 * sum((jnp.asarray(RATES[name]) * params[name] ** 2).sum() for name in RATES)


def decayed(time):
    return {name: START[name] * np.exp(-RATES[name] * MASK[name] * time) for name in RATES}


@pytest.fixture(scope="module", params=["saved", "dense"])
def decay(request):
    with jax.enable_x64(True):
        flow = jax.jit(
            lambda start, mask: gradient_flow(
                quadratic, start, 2, save_at=jnp.asarray(TIMES), mask=mask, dense=request.param == "dense"
            )
        )(jax.tree.map(jnp.asarray, START), jax.tree.map(jnp.asarray, MASK))
        # On the host, all but the path, so that float64 stays float64 outside of this context.
        return jax.tree.map(np.asarray, flow._replace(path=None))._replace(path=flow.path)


def test_a_quadratic_loss_decays_exponentially_where_the_mask_is_one(decay):
    # The interpolation between two steps is of a lower order than they are.
    tolerance = 3e-8 if decay.path is None else 3e-6
    for name, expected in decayed(2.0).items():
        np.testing.assert_allclose(decay.params[name], expected, rtol=3e-8)
    for index, time in enumerate(TIMES):
        for name, expected in decayed(time).items():
            np.testing.assert_allclose(decay.saves.values[name][index], expected, rtol=tolerance)
    assert (decay.params["matrix"][0, 2], decay.params["vector"][2]) == (1.0, 3.0)
    assert decay.saves.reached.all()


def test_the_curvature_is_that_of_the_free_coordinates(decay):
    np.testing.assert_allclose(decay.curvature, 0.0, atol=1e-15)  # rate 0 of the vector, which is free
    assert Status(int(decay.status)) == Status.RUNNING


def test_the_dense_path_is_the_flow_and_ends_with_it(decay):
    if decay.path is None:
        with pytest.raises(ValueError, match=re.escape("the flow has kept no path; ask for it by dense=True")):
            along(decay, 1.0)
        return
    with jax.enable_x64(True):
        for clock, expected in ((-1.0, decayed(0.0)), (0.6, decayed(0.6)), (9, decayed(2.0))):
            time, params = along(decay, clock)
            assert time == np.clip(clock, 0.0, 2.0)
            for name in expected:
                np.testing.assert_allclose(params[name], expected[name], rtol=3e-6)


def test_a_speed_changes_the_clock_and_not_the_path():
    @jax.jit
    @jax.vmap
    def run(by_length, a):
        def speed(params, slope):
            return jnp.where(by_length, 1 / jnp.hypot(slope["a"], slope["b"]), 1 / 294)

        return gradient_flow(
            scalar_loss(GAUSSIAN, 294.0),
            {"a": a, "b": jnp.full_like(a, 1.5)},
            0.2,
            save_at=jnp.array([0.02, 0.1]),
            speed=speed,
            observe=lambda p: {"product": p["a"] * p["b"], "balance": balance(p["a"], p["b"])},
        )

    with jax.enable_x64(True):
        flow = run(jnp.array([False, True, True]), jnp.array([0.5, 0.5, 1.5]))
        flow = jax.tree.map(np.asarray, flow)
    for index, a in enumerate((0.5, 0.5, 1.5)):
        expected = [product(a, 1.5, GAUSSIAN, 294.0, time) for time in flow.saves.times[index]]
        np.testing.assert_allclose(flow.saves.values["product"][index], expected, rtol=1e-7)
        np.testing.assert_allclose(flow.saves.values["balance"][index], a**2 - 1.5**2, atol=1e-8)
    np.testing.assert_allclose(flow.saves.times[0], np.array([0.02, 0.1]) / 294, rtol=1e-9)
    # From a = b the way is a straight line, along which the arc length is the distance.
    np.testing.assert_allclose(
        flow.saves.values["product"][2], (1.5 - np.array([0.02, 0.1]) / np.sqrt(2)) ** 2, rtol=1e-8
    )
    np.testing.assert_allclose(flow.clock, 0.2)
    np.testing.assert_allclose(flow.time[0], 0.2 / 294)


def test_a_stiff_solver_takes_steps_by_accuracy_and_not_by_stability():
    def loss(p):
        return 0.5 * (1e5 * (p[0] - 1) ** 2 + p[1] ** 2)

    @jax.jit
    @jax.vmap
    def run(start):
        return gradient_flow(loss, start, 5.0, solver=diffrax.Kvaerno5(), rtol=1e-6, curvature=False)

    with jax.enable_x64(True):
        flow = run(jnp.array([[2.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_allclose(flow.params, [[1, np.exp(-5)], [1, 0]], rtol=1e-5)
    assert flow.num_steps[0] < 100  # an explicit step is at most about 3e-5 long
    assert flow.num_steps[1] == 0
    # No curvature was asked for, so no minimum is claimed.
    assert flow.curvature is None
    assert flow.status.tolist() == [Status.RUNNING, Status.STATIONARY]


def data_loss(x, y):
    return lambda w: 0.5 * jnp.mean(jnp.sum((jnp.tanh(x @ w) - y) ** 2, axis=1))


def test_a_sharded_batch_follows_the_same_path():
    random = np.random.default_rng(0)
    x, y, w = (random.standard_normal(shape) for shape in ((64, 3), (64, 2), (3, 2)))
    run = jax.jit(lambda x, y, w: gradient_flow(data_loss(x, y), w, 2.0, save_at=jnp.array([0.5, 1.0])))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batch, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    with jax.enable_x64(True):
        one = run(x, y, w)
        placed = jax.device_put((x, y, w), (batch, batch, everywhere))
        assert len(placed[0].sharding.device_set) == 8
        many = run(*placed)
    np.testing.assert_allclose(many.saves.values, one.saves.values, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([many.loss, many.curvature], [one.loss, one.curvature], rtol=1e-10)


def test_a_flow_lowers_for_every_platform():
    def run(x, y, w, t1, save_at):
        return gradient_flow(data_loss(x, y), w, t1, save_at=save_at, mask=jnp.ones((3, 2)), speed=lambda w, g: t1)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 3), (64, 2), (3, 2), (), (5,))]
    assert_portable(
        jax.jit(jax.vmap(run, in_axes=(None, None, 0, None, None))),
        *shapes[:2],
        jax.ShapeDtypeStruct((7, 3, 2), jnp.float32),
        *shapes[3:],
    )


def refused(message, loss=lambda x: (x**2).sum(), params=None, t1=1.0, error=ValueError, **options):
    with pytest.raises(error, match="^" + re.escape(message)):
        gradient_flow(loss, jnp.ones(2) if params is None else params, t1, **options)


def test_bad_arguments_are_named_before_anything_is_traced():
    refused("t1 must be positive and finite, got 0.0", t1=0.0)
    refused("t1 must be positive and finite, got -1", t1=-1)
    refused("t1 must be positive and finite, got nan", t1=float("nan"))
    refused("rtol must be positive and finite, got 0.0", rtol=0.0)
    refused("atol must be positive and finite, got -1.0", atol=-1.0)
    refused("stationary must be positive and finite, got 0.0", stationary=0.0)
    refused("blow_up must be positive and finite, got 0.0", blow_up=0.0)
    refused("max_steps must be at least 1, got 0", max_steps=0)
    refused("save_at must be one or more increasing times from 0 on, got [0.5, 0.5]", save_at=np.array([0.5, 0.5]))
    refused("save_at must be one or more increasing times from 0 on, got [-0.5, 0.5]", save_at=np.array([-0.5, 0.5]))
    refused("save_at must be one or more increasing times from 0 on, got []", save_at=np.zeros(0))
    refused("save_at must end at t1 = 1.0 or before, got 1.5", save_at=np.array([0.5, 1.5]))
    refused("loss must return one real number of shape (), got shape (2,) of float32", loss=lambda x: x)
    refused(
        "params must be real floating arrays, got int32; split complex numbers into two parts", params=jnp.arange(2)
    )
    refused("params must have at least one array, got none", params={})
    refused("params must be all float32 or all float64, got bfloat16; convert them", params=jnp.ones(2, jnp.bfloat16))
    refused(
        "mask must have the structure of params, got PyTreeDef({'x': *}), expected PyTreeDef(*)",
        mask={"x": jnp.ones(2)},
    )
    refused("mask must have the shapes of params, got (3,), expected (2,)", mask=jnp.ones(3))
