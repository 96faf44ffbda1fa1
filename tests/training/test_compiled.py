"""What the compiled step of a diffusion network's training must be: portable, and free of baked-in numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from programs import assert_portable, constant_bytes

from jaxgen.diffusion import denoising_loss, draw_log_normal_level, edm_preconditioned, edm_weight, x0_target
from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params, drop_labels
from jaxgen.training import create, ema, in_memory, run_span

MODEL = ImageMLP(ImageMLPConfig())
OPTIMISER = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3, weight_decay=1e-4)
AVERAGE = ema(half_life=700.0)


def denoise(params, key, image, label):
    """The loss of one image at a drawn level, as the digits network is trained."""
    level_key, noise_key = jax.random.split(key)
    level = draw_log_normal_level(level_key, -0.8, 1.2, 20.0)

    def predict(x, level):
        network = lambda x, c_noise: MODEL.apply({"params": params}, x, c_noise, label)  # noqa: E731
        return edm_preconditioned(network, x, level, 0.75)

    return denoising_loss(predict, noise_key, image, level, target=x0_target, weight=edm_weight(0.75))


def update(state, constants, batch):
    del constants
    label_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    labels = drop_labels(label_key, batch["labels"], 0.15, MODEL.config.null_label)

    def loss(params):
        keys = jax.random.split(loss_key, len(labels))
        return jnp.mean(jax.vmap(denoise, in_axes=(None, 0, 0, 0))(params, keys, batch["images"], labels))

    value, gradient = jax.value_and_grad(loss)(state.params)
    change, opt_state = OPTIMISER.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, change)
    average = AVERAGE.update(state.ema, params)
    return state._replace(params=params, opt_state=opt_state, ema=average), {"loss": value}


def span_and_shapes(update=update):
    """Several steps of training at the real size of the digits network, and the shapes of their arguments."""
    data = in_memory({"images": jnp.zeros((300, 8, 8)), "labels": jnp.zeros(300, jnp.int32)}, 256, jax.random.key(0))

    def start():
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(MODEL))
        return create(jax.random.key(0), params, OPTIMISER.init(params), ema=AVERAGE.init(params))

    arguments = (jax.eval_shape(start), (), data.load(0, 4), np.int32(4))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), arguments)
    return jax.jit(lambda *operands: run_span(update, data.select, 4, None, None, "loss", *operands)), shapes


def test_the_step_of_a_denoising_loss_lowers_for_every_platform():
    span, shapes = span_and_shapes()
    assert_portable(span, *shapes)
    assert "256x8x8xf32" in span.lower(*shapes).as_text()


def test_the_step_holds_no_large_constant_and_images_that_are_closed_over_are_found():
    span, shapes = span_and_shapes()
    assert constant_bytes(span.lower(*shapes)) < 10_000
    images = jnp.asarray(np.random.default_rng(0).standard_normal((256, 8, 8)), jnp.float32)

    def closed(state, constants, batch):
        return update(state, constants, {**batch, "images": batch["images"] + images})

    span, shapes = span_and_shapes(closed)
    assert constant_bytes(span.lower(*shapes)) >= images.nbytes
