"""Draw the images that a user asks for, from networks that are trained already or have just been."""

from typing import Any

import numpy as np

from experiments.digits import data, edm2_measuring, judging
from experiments.digits.claims import CLAIMS
from experiments.digits.edm2 import TrainedEDM2
from experiments.digits.networks import Networks
from experiments.digits.sampling import TITLES, sampling_key
from experiments.digits.sampling import draw as draw_images
from experiments.plots import image_grid
from experiments.run_directory import RunDirectory

_COLUMNS = 16


def draw(config: Any, run: RunDirectory, small: Networks | None, large: TrainedEDM2 | None) -> None:
    """Draw `config.samples` images with `config.sampler`; the figure `samples` and the array `samples` hold them."""
    digits = data.load()
    labels = np.arange(config.samples) % 10 if config.label is None else np.full(config.samples, config.label)
    sampler = {**TITLES, "heun": "Heun's method"}[config.sampler]
    name, steps = sampler, config.sampling_steps
    if large is not None:
        width = "" if config.ema_width is None else f", average of width {config.ema_width:g}"
        name, steps = f"EDM2{width}, {sampler}", config.edm2.sampling_steps
    with run.progress(config.samples, f"drawing with {name}") as progress:
        options = {
            "scale": config.gamma,
            "steps": steps,
            "corrector_steps": config.corrector_steps,
            "on_block": progress.update,
        }
        if large is not None:
            images = edm2_measuring.draw(large, labels, sampling_key(run.seed), sampler=config.sampler, **options)
        else:
            assert small is not None
            images = draw_images(small, config.sampler, labels, sampling_key(run.seed), **options)
    clipped = np.clip(images, -1.0, 1.0)
    run.arrays(samples=clipped.reshape(-1, data.SIDE, data.SIDE), labels=labels)
    columns = min(_COLUMNS, config.samples)
    rows = -(-config.samples // columns)
    sheet = np.full((rows * columns, data.SIDE, data.SIDE), -1.0)
    sheet[: config.samples] = clipped.reshape(-1, data.SIDE, data.SIDE)
    asked = "every digit" if config.label is None else f"the digit {config.label}"
    title = f"{name}, guidance scale {config.gamma:g}, {steps} steps: {asked}"
    run.figure("samples", image_grid(sheet.reshape(rows, columns, data.SIDE, data.SIDE), title=title), title)
    judge = judging.make_judge(digits)
    right = float(np.mean(judge.classifier.predict(clipped) == labels))
    distance = np.sqrt(((clipped[:, None] - digits.train[None]) ** 2).sum(-1)).min(1).mean()
    run.note(
        f"A classifier reads {right:.1%} of the {config.samples} images as the digit asked for; their mean distance to "
        f"the nearest training image is {distance:.2f} (real held-out digits: 2.13)."
    )
    for claim in CLAIMS:
        run.not_run(claim.id, f"only images were asked for, with --sampler {config.sampler}")
