"""What a compiled sampler must be: small, traced once, free of baked-in numbers, and portable."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_portable, constant_bytes
from support import filled_params

from jaxgen.diffusion import (
    EDM,
    Prediction,
    at_now,
    classifier_free,
    ddim,
    ddim_inversion_fixed_point,
    ddpm,
    denoiser,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    draw_block,
    edm_preconditioned,
    euler,
    euler_maruyama,
    forward_std,
    heun,
    heun_flow,
    karras_grid,
    langevin,
    pcg,
    predictor_corrector,
    quiet_end,
    sample,
    signal_to_noise,
    trajectory,
    uniform_grid,
)
from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params

NULL = ImageMLPConfig().null_label
SAMPLERS = {
    "ddpm": lambda conditional, guided, eta: ddpm(guided),
    "ddim": lambda conditional, guided, eta: ddim(guided, eta),
    "euler": lambda conditional, guided, eta: euler(guided, EDM(80.0)),
    "langevin": lambda conditional, guided, eta: predictor_corrector(ddpm(guided), langevin(guided, 3)),
    "pcg": lambda conditional, guided, eta: pcg(conditional, guided),
    "ddpm, large": lambda conditional, guided, eta: ddpm(guided, std=quiet_end(forward_std)),
    "dpm_solver_pp_2m": lambda conditional, guided, eta: dpm_solver_pp_2m(guided),
    "dpm_solver_pp_2m_sde": lambda conditional, guided, eta: dpm_solver_pp_2m_sde(guided),
    "euler_maruyama": lambda conditional, guided, eta: euler_maruyama(guided, EDM(80.0)),
    "heun": lambda conditional, guided, eta: heun(guided),
    "heun_flow": lambda conditional, guided, eta: heun_flow(guided, EDM(80.0)),
    "inversion": lambda conditional, guided, eta: ddim_inversion_fixed_point(guided, 3),
    "adapted": lambda conditional, guided, eta: predictor_corrector(
        heun(guided), langevin(guided, adapt=signal_to_noise(), evaluate_at=at_now)
    ),
}
WITHOUT_NOISE = ("dpm_solver_pp_2m", "euler", "heun", "heun_flow", "inversion")


def build(name, network, params, label, scale, eta):
    """Build a sampler from the arguments of the compiled function, as its users do."""

    def predict(x, level, label):
        output = lambda x, c_noise: network(params, x, c_noise, label)  # noqa: E731
        return edm_preconditioned(output, x, level, 0.75)

    guided = denoiser(classifier_free(predict, label, NULL, scale))
    conditional = denoiser(lambda x, level: predict(x, level, label))
    return SAMPLERS[name](conditional, guided, eta)


def rising(grid):
    return jax.tree.map(lambda leaf: leaf[::-1], grid)


def image_mlp(params, x, c_noise, label):
    """The digits network at its real size."""
    return ImageMLP(ImageMLPConfig()).apply({"params": params}, x, c_noise, label)


def image_sampler(name):
    def draw(params, key, x, label, scale, eta, grid):
        return sample(build(name, image_mlp, params, label, scale, eta), key, x, grid)

    return draw


@functools.cache
def image_arguments():
    """Shapes of what an image sampler is given; nothing of it has to exist for a program to be lowered."""
    scalar = jnp.float32(1.0)
    arguments = (jax.random.key(0), jnp.zeros((8, 8)), 3, scalar, scalar, jax.tree.map(jnp.float32, karras_grid(10)))
    return abstract_params(ImageMLP(ImageMLPConfig())), *shapes(arguments)


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def toy(params, x, c_noise, label):
    return jnp.tanh(params * x + c_noise + 0.1 * label)


def peak_bytes(draw, steps):
    """Arguments, results and temporaries of 1,024 samples, as the compiler has planned them."""
    keys, x = jax.random.split(jax.random.key(0), 1024), jnp.zeros((1024, 8, 8))
    grid = jax.tree.map(jnp.float32, karras_grid(steps))
    many = jax.jit(jax.vmap(draw, in_axes=(0, 0, None, None)))
    memory = many.lower(*shapes((keys, x, jnp.float32(2.0), grid))).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pcg", "heun", "dpm_solver_pp_2m"])
def test_peak_memory_does_not_grow_with_the_steps(name):
    def draw(key, x, scale, grid):
        return sample(build(name, toy, 0.5, 3, scale, 0.5), key, x, grid)

    few, many = peak_bytes(draw, 10), peak_bytes(draw, 1000)
    # The grid and the numbers of the steps are the 16 kB that may differ; keys split beforehand would be 8 MB.
    assert many <= 1.05 * few
    assert few > 2 * 1024 * 64 * 4  # at least the samples themselves, in and out


def test_a_trajectory_that_is_kept_shows_in_the_peak_memory():
    def keep(key, x, scale, grid):
        return trajectory(build("ddim", toy, 0.5, 3, scale, 0.0), key, x, grid)[0]

    assert peak_bytes(keep, 100) > 100 * 1024 * 64 * 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_scale_eta_seed_label_and_grid_never_trace_again(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(params, key, x, label, scale, eta, grid):
        return sample(build(name, toy, params, label, scale, eta), key, x, grid)

    usual = {"params": 0.5, "seed": 0, "label": 3, "scale": 2.0, "eta": 0.5, "grid": karras_grid(4)}
    others = {"params": 0.7, "label": 1, "scale": 0.0, "grid": karras_grid(4, sigma_max=70.0, rho=5.0)}
    others |= {} if name in WITHOUT_NOISE else {"seed": 1}
    others |= {"eta": 0.0} if name == "ddim" else {}
    if name == "inversion":
        usual, others = ({**run, "grid": rising(run["grid"])} for run in (usual, others))

    def run(params, seed, label, scale, eta, grid):
        return draw(params, jax.random.key(seed), jnp.ones(3), label, scale, eta, grid)

    expected = run(**usual)
    assert jnp.isfinite(expected).all()
    for option, value in others.items():
        # Each reaches the result, so that none of them was baked into the program.
        assert jnp.abs(run(**{**usual, option: value}) - expected).max() > 1e-4, option


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_lowered_sampler_holds_no_large_constant(name):
    # All of them together are well below the megabyte that the house allows to one: the largest kernel of this network
    # is half a megabyte, so that a bound on each would miss it.
    assert constant_bytes(jax.jit(image_sampler(name)).lower(*image_arguments())) < 10_000


def test_parameters_that_are_closed_over_are_found():
    params = filled_params(ImageMLP(ImageMLPConfig()))
    closed = jax.jit(functools.partial(image_sampler("ddim"), params)).lower(*image_arguments()[1:])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size > 4e6
    assert constant_bytes(closed) >= size


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_lower_for_every_platform(name):
    assert_portable(jax.jit(image_sampler(name)), *image_arguments())


def test_a_block_of_many_samples_lowers_for_every_platform_without_large_constants():
    def draw(key, label, params, scale, grid):
        return sample(build("pcg", image_mlp, params, label, scale, 0.0), key, jnp.zeros((8, 8)), grid)

    params, *_, scale, _, grid = image_arguments()
    keys, labels = shapes((jax.random.split(jax.random.key(0), 64), jnp.zeros(64, jnp.int32)))
    assert_portable(jax.jit(lambda *block: draw_block(draw, *block)), keys, labels, (params, scale, grid))
    assert constant_bytes(draw_block.lower(draw, keys, labels, (params, scale, grid))) < 10_000


def test_float64_in_a_program_is_found():
    with jax.enable_x64(True), pytest.raises(AssertionError, match="f64"):
        assert_portable(jax.jit(lambda x: x @ x), jax.ShapeDtypeStruct((2, 2), jnp.float64))


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("ddpm", 1), ("ddim", 1), ("euler", 1), ("pcg", 2), ("dpm_solver_pp_2m", 1), ("euler_maruyama", 1), ("heun", 2)],
)
def test_guidance_is_one_evaluation_of_a_batch_of_two(name, evaluations):
    params, key, x, label, scale, eta, grid = image_arguments()
    calls = []

    def counted(params, x, c_noise, label):
        calls.append(x.shape)
        return image_mlp(params, x, c_noise, label)

    def step(params, key, x, label, scale, eta, grid):
        sampler = build(name, counted, params, label, scale, eta)
        now, next = (jax.tree.map(lambda leaf, n=n: leaf[n], grid) for n in (0, 1))
        return sampler.step(key, sampler.init(x), now, next)[0].x

    def products(function, *arguments):
        return jax.jit(function).lower(*arguments).as_text().count("stablehlo.dot_general")

    guided = products(step, params, key, x, label, scale, eta, grid)
    # PCG predicts by the conditional network alone, then corrects by the guided one.
    assert calls == [(8, 8)] * evaluations
    network = products(image_mlp, params, x, scale, label)
    assert network == 2 + 3 * ImageMLPConfig().blocks + 2
    assert guided == evaluations * network


def test_guidance_evaluates_the_network_on_two_conditions_at_once():
    # Seen by the network: one batch, in which both conditions occur.
    seen = []

    @jax.custom_batching.custom_vmap
    def network(label):
        return label

    @network.def_vmap
    def _(size, batched, label):
        seen.append((size, batched))
        return label, True

    def predict(x, level, label):
        return Prediction(x * network(label), x)

    guided = classifier_free(predict, jnp.float32(5.0), jnp.float32(NULL), 3.0)
    x0 = guided(jnp.ones(2), jax.tree.map(lambda leaf: jnp.float32(leaf[0]), uniform_grid(EDM(), 1))).x0
    assert seen == [(2, [True])]
    np.testing.assert_allclose(x0, 3 * 5.0 - 2 * NULL)
