"""What every rule of guidance does to a network: one evaluation of a batch of two, in one program for all numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

from jaxgen.diffusion import (
    Level,
    Prediction,
    autoguidance,
    batched_pair,
    cfg_plus_plus,
    combine,
    ddim,
    denoiser,
    diagonal_mixture,
    guide,
    guide_pair,
    interval_scale,
    karras_grid,
    predict_exactly,
    projected_guidance,
    rescaled_guidance,
    sample,
    separate_pair,
    x0_view,
)

WIDTH, HIDDEN, NULL = 3, 5, 4
# Each rule as a denoiser, from a pair of predictions and four numbers in (0, 1).
RULES = {
    "plain": lambda pair, a, b, c, d: denoiser(guide_pair(pair, 4.0 * a)),
    "interval": lambda pair, a, b, c, d: denoiser(guide_pair(pair, interval_scale(4.0 * a, b, b + c))),
    "rescaled": lambda pair, a, b, c, d: denoiser(rescaled_guidance(pair, 4.0 * a, b)),
    "rescaled in an interval": lambda pair, a, b, c, d: denoiser(
        rescaled_guidance(pair, interval_scale(4.0 * a, b, b + c), d, view=x0_view)
    ),
    "projected": lambda pair, a, b, c, d: projected_guidance(pair, 4.0 * a, parallel=b, norm_threshold=c, momentum=-d),
    "plus plus": lambda pair, a, b, c, d: denoiser(cfg_plus_plus(pair, a)),
}
NUMBERS = ((0.9, 0.2, 0.6, 0.5), (0.4, 0.7, 0.9, 0.1))


def network(parameters, x, level, label):
    """Two layers that see the label before the first."""
    first, second, classes = parameters
    hidden = jnp.tanh(first @ jnp.concatenate([x, classes[label], jnp.asarray(level.time)[None]]))
    x0 = second @ hidden
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def some_parameters():
    rng = np.random.default_rng(0)
    shapes = ((HIDDEN, 2 * WIDTH + 1), (WIDTH, HIDDEN), (NULL + 1, WIDTH))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


LEVEL = Level(jnp.float32(0.3), jnp.float32(0.8), jnp.float32(0.6))
X = jnp.array([0.3, -1.2, 0.7])


def pairs(parameters):
    given = lambda x, level, label: network(parameters, x, level, label)  # noqa: E731
    alone = (lambda x, level, label=label: given(x, level, label) for label in (1, NULL))
    return batched_pair(given, 1, NULL), separate_pair(*alone)


def products(rule, which):
    """The shapes of all matrix products in the program of one evaluation."""

    def program(parameters, x, level, numbers):
        model = RULES[rule](pairs(parameters)[which], *numbers)
        return model.apply(model.init(x), x, level)

    text = str(jax.make_jaxpr(program)(some_parameters(), X, LEVEL, NUMBERS[0]))
    return re.findall(r":f32\[([\d,]*)\] = dot_general", text)


@pytest.mark.parametrize("rule", RULES)
def test_network_is_evaluated_once_on_a_batch_of_two(rule):
    layers = (HIDDEN, WIDTH)
    batched = products(rule, 0)
    assert [sorted(map(int, shape.split(","))) for shape in batched] == [sorted([2, size]) for size in layers]
    assert products(rule, 1) == [str(size) for size in layers] * 2


@pytest.fixture(scope="module")
def results():
    """Samples by every rule from the batched and from the separate pair, and how often their program was traced."""
    traces = []

    @jax.jit
    def program(parameters, x, grid, numbers):
        traces.append(None)
        both = pairs(parameters)
        return {
            name: [sample(ddim(rule(pair, *numbers)), jax.random.key(0), x, grid) for pair in both]
            for name, rule in RULES.items()
        }

    grid = jax.tree.map(lambda leaf: jnp.asarray(leaf[:-1], jnp.float32), karras_grid(8, sigma_min=0.1, sigma_max=5.0))
    arguments = (some_parameters(), 5.0 * X, grid)
    outcomes = [program(*arguments, numbers) for numbers in NUMBERS]
    return outcomes, len(traces), program, arguments


@pytest.mark.parametrize("rule", RULES)
def test_batched_pair_says_what_two_calls_say(results, rule):
    for outcome in results[0]:
        batched, separate = outcome[rule]
        np.testing.assert_allclose(batched, separate, rtol=1e-4, atol=1e-5)  # 7 steps of float32 rounding
    first, second = (outcome[rule][0] for outcome in results[0])
    assert np.abs(first - second).max() > 1e-3  # the numbers are heard


def test_other_numbers_do_not_trace_the_program_again(results):
    assert results[1] == 1


def test_every_rule_lowers_for_every_platform(results):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.float32), (*results[3], NUMBERS[0]))
    programs.assert_portable(results[2], *shapes)


def test_a_weaker_network_under_the_same_condition_takes_the_place_of_the_unconditional():
    # The weak one knows a wider Gaussian: the precisions of x combine as scale * strong + (1 - scale) * weak.
    laws = [diagonal_mixture([1.0], [[0.0]], [[variance]]) for variance in (1.0, 3.0)]
    strong, weak = (lambda x, level, law=law: predict_exactly(law, x, level) for law in laws)
    x, level = jnp.array([1.5]), Level(0.5, 1.0, 0.5)
    for scale in (0.0, 1.0, 2.5):
        prediction = autoguidance(strong, weak, scale)(x, level)
        precision = scale / 1.25 + (1 - scale) / 3.25
        np.testing.assert_allclose(prediction.noise, 0.5 * precision * x, rtol=1e-6)
        np.testing.assert_allclose(prediction.x0, (1 - 0.25 * precision) * x, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, autoguidance(strong, weak, 1.0)(x, level), strong(x, level))
    varying = autoguidance(strong, weak, lambda level: 5.0 * level.sigma)(x, level)
    jax.tree.map(np.testing.assert_array_equal, varying, guide(strong, weak, 2.5)(x, level))


def test_predictions_of_different_shapes_are_refused():
    whole, part = Prediction(X, X), Prediction(X[:1], X[:1])
    rules = {name: RULES[name](lambda x, level: (whole, part), *NUMBERS[0]) for name in RULES}
    for refuse in [
        lambda: combine(whole, part, 2.0),
        lambda: combine(Prediction(X, X), Prediction(X, X[:1]), 2.0),
        *(lambda model=model: model.apply(model.init(X), X, LEVEL) for model in rules.values()),
    ]:
        with pytest.raises(ValueError) as caught:
            refuse()
        assert str(caught.value) == "both predictions need one shape, got (3,) and, unconditional, (1,)"
