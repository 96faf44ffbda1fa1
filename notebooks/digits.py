# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A diffusion model of handwritten digits
#
# Train two small networks on real digits, one to denoise and one to follow straight paths (flow matching). Sample them
# from one noise by DDIM, DDPM, classifier-free guidance and predictor-corrector guidance, watch a digit emerge, and
# measure whether the samples can be told from digits that the networks have never seen. Runs on TPU, GPU and CPU.

# %%
# 1. Install jaxgen where it cannot be imported. A jax that is there already stays if jaxgen supports it.
import importlib.util
import subprocess
import sys

SOURCE = ".."  # a folder, a wheel, or an address such as "git+https://host/owner/jaxgen"
if importlib.util.find_spec("jaxgen") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)

# %%
# 2. One mesh over every device. Training splits its batches over it, and sampling its images.
import jax

from jaxgen.training import make_mesh

mesh = make_mesh({"data": jax.device_count()})
print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")

# %%
# 3. The one size: "ci" takes half a minute and gives rough digits, "small" a minute, "full" what the experiment trains.
import os

from jaxgen.pipelines import Recipe

SIZE = os.environ.get("JAXGEN_NOTEBOOK_SIZE", "small")
recipe = Recipe(steps={"ci": 300, "small": 2000, "full": 8000}[SIZE])

# %%
# 4. The data: 1,200 digits to train on, 597 held out, 8 x 8 pixels in [-1, 1].
# %matplotlib inline
import numpy as np

from experiments.digits import data
from experiments.plots import image_grid

digits = data.load()
images = digits.train.reshape(-1, 8, 8)
image_grid(images[:40].reshape(4, 10, 8, 8), title="Real digits")

# %%
# 5. Train the denoiser. The digits are shifted by up to a pixel; the network is told by how much, so no shift leaks.
from jaxgen.models import ImageMLP, ImageMLPConfig
from jaxgen.pipelines import SHIFT_FEATURES, EDMObjective, FlowObjective, train_diffusion

model = ImageMLP(ImageMLPConfig(image_shape=(8, 8), augmentation=SHIFT_FEATURES))
denoising = EDMObjective(data_std=0.75, log_sigma_mean=-0.5, log_sigma_std=1.4, sigma_max=20.0)


def train(objective, seed):
    losses = []
    key = jax.random.key(seed)
    state = train_diffusion(
        model,
        objective,
        images,
        digits.train_labels,
        key,
        recipe,
        mesh=mesh,
        on_metrics=lambda step, metrics: losses.append(metrics["loss"]),
    )
    print(f"{recipe.steps} steps: loss {np.mean(losses[:50]):.3f} at first, {np.mean(losses[-50:]):.3f} at last")
    return state.ema.average


denoiser_params = train(denoising, seed=0)

# %%
# 6. Train a second network on the velocity of straight paths.
flow = FlowObjective()
flow_params = train(flow, seed=1)

# %%
# 7. One noise, four samplers: image i depends on the key, on i and on its label alone.
from jaxgen.pipelines import PredictorCorrectorGuidance, generate_images, guided_ddim, guided_ddpm, guided_euler

key, labels = jax.random.key(2), np.arange(10)
samplers = {
    "DDIM": (denoising, denoiser_params, guided_ddim),
    "DDPM": (denoising, denoiser_params, guided_ddpm),
    "PCG": (denoising, denoiser_params, PredictorCorrectorGuidance()),
    "flow": (flow, flow_params, guided_euler),
}


def draw(name, labels, **settings):
    objective, params, method = samplers[name]
    settings = {"steps": 100, "block_size": 200, "mesh": mesh, **settings}
    return generate_images(model, objective, params, labels, key, method=method, **settings)


image_grid([draw(name, labels, scale=1.5) for name in samplers], row_labels=list(samplers), title="One noise")

# %%
# 8. Guidance: scale 0 ignores the label, 1 is the conditional model, above 1 trades variety for likeness.
scales = (0.0, 1.0, 3.0, 7.0)
rows = [draw("DDIM", labels, scale=scale) for scale in scales]
image_grid(rows, row_labels=[f"scale {scale:g}" for scale in scales], title="DDIM under guidance")

# %%
# 9. A digit emerges: the sample from noise to clean, and the clean image that the network sees in it.
from jaxgen.pipelines import film_images

film = film_images(model, denoising, denoiser_params, np.array([3]), key, method=guided_ddim, steps=100, mesh=mesh)
frames = np.linspace(0, 99, 12).round().astype(int)
noisy = film.x[0, frames + 1]
strips = [noisy / np.abs(noisy).max((1, 2), keepdims=True), film.x0[0, frames]]
image_grid(strips, row_labels=["sample", "clean image"], title="DDIM, 100 steps")

# %%
# 10. Can the samples be told from held-out digits? 0.5 is perfect for both accuracies, 1 for the others.
from experiments.digits import judging

judge = judging.make_judge(digits)
asked = digits.train_labels[data.subset(digits, 0)]
compared = {
    "real digits": digits.train[data.subset(digits, 0)],
    "one Gaussian per class": data.gaussian_samples(digits, asked, 0),
    **{name: draw(name, asked).reshape(-1, 64) for name in ("DDIM", "flow")},
}
shown = ("nearest_neighbor", "classifier", "precision", "recall", "accuracy")
print(f"{'':24}", *(f"{judging.NAMES[name]:>20}" for name in shown))
for name, samples in compared.items():
    scores = judging.score(judge, samples, asked)
    print(f"{name:24}", *(f"{scores[statistic]:20.3f}" for statistic in shown))
