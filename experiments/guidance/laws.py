"""Which laws guided DDIM and DDPM sample: the Gaussian problem, two clusters and three (D1, D2, D3)."""

import time
from typing import Any

import numpy as np

from experiments.claims import Cell
from experiments.guidance import clouds, figures, references
from experiments.run_directory import RunDirectory

METHODS = {"DDIM": clouds.by_ddim, "DDPM": clouds.by_ddpm}
_LARGEST_SHARE_MARGIN = 0.002
_HALF_WAY = "half of what parts this share under DDIM and DDPM, at most .002"
_SKEWNESS = {"margin": 0.04, "margin_reason": "half of what parts the skewness of DDIM and DDPM at least"}
_SHARES = ("below -1.5", "between", "above 1.5")


def measure(config: Any, run: RunDirectory) -> None:
    """Measure and draw the laws of guided sampling."""
    _gaussian(config, run)
    _two_clusters(config, run)
    _three_clusters(config, run)


def _gaussian(config: Any, run: RunDirectory) -> None:
    began = time.perf_counter()
    scales = sorted({*references.SCALES, *references.SHARP_SCALES})
    options = {"particles": config.particles, "seeds": config.seeds}
    problem = clouds.gaussian_problem()
    found = {}
    with run.progress(len(METHODS), "the Gaussian problem") as progress:
        for number, (name, method) in enumerate(METHODS.items(), start=1):
            found[name] = clouds.extrapolated(run, method, problem, scales, config.exact_steps, **options)
            progress.update(number)
    seconds = time.perf_counter() - began
    laws = {
        "DDIM": (references.DDIM_MEANS.__getitem__, references.ddim_variance),
        "DDPM": (references.ddpm_mean, references.ddpm_variance),
    }
    cells = []
    for scale in references.SCALES:
        for name, (mean, variance) in laws.items():
            at = scales.index(scale)
            of = f"gamma = {scale:g}, {name}"
            cells.append(Cell(f"{of}: variance / law", values=found[name].variance[:, at] / variance(scale)))
            cells.append(Cell(f"{of}: mean / law", values=found[name].mean[:, at] / mean(scale)))
    run.record("D1", cells, seconds=seconds)
    sharp = [scales.index(scale) for scale in references.SHARP_SCALES]
    ratio = found["DDIM"].variance[:, sharp] / found["DDPM"].variance[:, sharp]
    ratio /= 2 * np.array(references.SHARP_SCALES) - 1
    cell = Cell("DDIM / DDPM / (2 gamma - 1) against 2^gamma", values=ratio, x=2.0 ** np.array(references.SHARP_SCALES))
    run.record("D2", [cell], seconds=seconds)
    run.arrays(
        gaussian_scales=scales,
        **{f"gaussian_{name}_variance".lower(): of.variance for name, of in found.items()},
        **{f"gaussian_{name}_mean".lower(): of.mean for name, of in found.items()},
    )
    figures.gaussian_laws(run, scales, found)


def _two_clusters(config: Any, run: RunDirectory) -> None:
    began = time.perf_counter()
    pairs = list(references.TWO_CLUSTERS)
    options = {"particles": config.cluster_particles, "seeds": config.seeds}
    found: dict[tuple[float, float], dict[str, clouds.Statistics]] = {}
    with run.progress(len(pairs), "two clusters") as progress:
        for number, (mu, scale) in enumerate(pairs, start=1):
            problem = clouds.two_clusters(mu)
            found[mu, scale] = {
                name: clouds.extrapolated(run, method, problem, [scale], config.exact_steps, **options)
                for name, method in METHODS.items()
            }
            progress.update(number)
    seconds = time.perf_counter() - began
    shifted, laws = [], []
    for mu, scale in pairs:
        for law, (name, of) in zip(references.TWO_CLUSTERS[mu, scale], found[mu, scale].items(), strict=False):
            title = f"mu = {mu:g}, gamma = {scale:g}, {name}"
            shifted.append(Cell(f"{title}: mean - mu", values=of.mean[:, 0] - mu))
            shifted.append(Cell(f"{title}: skewness", values=of.skewness[:, 0]))
            for quantity, value in zip(("mean", "variance", "skewness"), law, strict=True):
                own = _SKEWNESS if quantity == "skewness" else {}
                laws.append(Cell(f"{title}: {quantity} - law", values=getattr(of, quantity)[:, 0] - value, **own))
    run.record("D3", shifted, seconds=seconds)
    run.record("D3-laws", laws, seconds=seconds)
    figures.cluster_densities(run, found)


def _three_clusters(config: Any, run: RunDirectory) -> None:
    began = time.perf_counter()
    scales, problem = list(references.THREE_CLUSTERS), clouds.three_clusters()
    options = {"particles": 3 * config.cluster_particles, "seeds": config.seeds}
    cells, found = [], {}
    for column, (name, method) in enumerate(METHODS.items()):
        of = clouds.extrapolated(run, method, problem, [1.0, *scales], config.exact_steps, **options)
        found[name] = of
        for at, scale in enumerate(scales, start=1):
            laws = references.THREE_CLUSTERS[scale]
            for part, share in enumerate(_SHARES):
                # Half of the way to the other sampler's law: the cell of one is refuted by the samples of the other.
                margin = min(_LARGEST_SHARE_MARGIN, 0.5 * abs(laws[0][part] - laws[1][part]))
                values = of.shares[:, at, part] - laws[column][part]
                title = f"gamma = {scale:g}, {name}: {share}"
                cells.append(Cell(title, values=values, margin=margin, margin_reason=_HALF_WAY))
    run.record("D3-masses", cells, seconds=time.perf_counter() - began)
    figures.three_clusters(run, [1.0, *scales], found)
