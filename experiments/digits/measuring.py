"""Measure every claim: the samplers against the held-out digits, beside real digits and class Gaussians."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.claims import Cell
from experiments.digits import data, edm2_measuring, figures, judging
from experiments.digits.claims import ATTEMPTS_AT_M2, CLAIMS
from experiments.digits.edm2 import TrainedEDM2
from experiments.digits.networks import Networks
from experiments.digits.sampling import TITLES, draw, sampling_key, seed_labels
from experiments.run_directory import Interrupted, RunDirectory

Scores = Mapping[str, np.ndarray]

_GATES = (
    ("M1", "nearest_neighbor"),
    ("M2", "nearest_neighbor"),
    ("M3", "precision"),
    ("M4", "recall"),
    ("M5", "classifier"),
    ("M6", "mmd2"),
    ("M8", "training_distance"),
)
# What is measured with all sampling seeds: the sampler and its guidance scale.
_MEASURED = (
    ("ddim", 1.0),
    ("ddpm", 1.0),
    ("flow", 1.0),
    ("pcg", 1.0),
    ("ddim", 0.0),
    ("ddim", 1.5),
    ("ddim", 3.0),
)
# Theorem 3 of the paper on PCG: the same law in the limit of small steps.
_PAIR = (("pcg", 2.0), ("ddpm", 1.5))
_RULERS = {"M9": "real digits", "M10": "class Gaussians"}
_EDM2_CLAIMS = ("M14", "M15", "M16")
_PAIR_STATISTICS = ("nearest_neighbor", "precision", "recall")


class Session(NamedTuple):
    """What every measurement of a run needs."""

    config: Any
    run: RunDirectory
    networks: Networks
    judge: judging.Judge

    def samples(self, sampler: str, scale: float, seeds: int, steps: int | None = None) -> np.ndarray:
        """Draw the images of the first `seeds` sampling seeds, `[seeds, 597, 64]`."""
        return draw(
            self.networks,
            sampler,
            self.labels(seeds),
            sampling_key(self.run.seed),
            scale=scale,
            steps=steps or self.config.sampling_steps,
            corrector_steps=self.config.corrector_steps,
        )

    def labels(self, seeds: int) -> np.ndarray:
        """Return the digits asked for, `[seeds, 597]`."""
        return seed_labels(self.judge.digits, seeds, self.run.seed)


def measure(config: Any, run: RunDirectory, small: Networks | None, large: TrainedEDM2 | None) -> None:
    """Measure and record every claim of the networks that there are, and draw every figure.

    Raises:
        Interrupted: a signal came; the networks are saved and the measurements start anew on resume.
    """
    judge = judging.make_judge(data.load())
    run.arrays(feature_network_sha256=judge.fingerprint)
    began = time.perf_counter()
    rulers = _rulers(config, run, judge)
    for claim, ruler in _RULERS.items():
        run.record(claim, [Cell(ruler, values=rulers[ruler]["nearest_neighbor"])], seconds=time.perf_counter() - began)
    if small is None:
        _leave_out(run, (*_EDM2_CLAIMS, *_RULERS), "this run has EDM2 alone, by --model edm2", others=True)
    else:
        session = Session(config, run, small, judge)
        began = time.perf_counter()
        scores = _samplers(session)
        seconds = (time.perf_counter() - began) / len(scores)
        _record(session, scores, seconds)
        _tell(session, scores, rulers)
        _curves(session, rulers)
        figures.pictures(session)
    if large is None:
        _leave_out(run, _EDM2_CLAIMS, "this run has the small networks alone, by --model small")
    else:
        edm2_measuring.measure(config, run, large, judge)


def _leave_out(run: RunDirectory, claims: Sequence[str], reason: str, *, others: bool = False) -> None:
    for claim in CLAIMS:
        if (claim.id in claims) != others:
            run.not_run(claim.id, reason)


def _rulers(config: Any, run: RunDirectory, judge: judging.Judge) -> dict[str, Scores]:
    """Score subsets of the training images and one Gaussian per class, as many samples as are held out each."""
    digits, rows = judge.digits, {"real digits": [], "class Gaussians": []}
    with run.progress(config.subsets, "real digits and Gaussians") as progress:
        for index in range(config.subsets):
            chosen = data.subset(digits, index)
            labels = digits.train_labels[chosen]
            rows["real digits"].append(judging.score(judge, digits.train[chosen], labels))
            gaussian = data.gaussian_samples(digits, labels, index)
            rows["class Gaussians"].append(judging.score(judge, gaussian, labels))
            progress.update(index + 1)
            _stop_here(run)
    return {name: {key: np.array([row[key] for row in of]) for key in of[0]} for name, of in rows.items()}


def _samplers(session: Session) -> dict[tuple[str, float], Scores]:
    scores, config = {}, session.config
    plan = [(*measured, config.seeds) for measured in _MEASURED] + [(*one, config.pair_seeds) for one in _PAIR]
    with session.run.progress(len(plan), "samplers") as progress:
        for number, (sampler, scale, seeds) in enumerate(plan, start=1):
            samples = session.samples(sampler, scale, seeds)
            scores[sampler, scale] = found = judging.score_all(session.judge, samples, session.labels(seeds))
            progress.update(number, **{"1-NN": float(found["nearest_neighbor"].mean())})
            _stop_here(session.run)
    return scores


def _record(
    session: Session,
    scores: Mapping[tuple[str, float], Scores],
    seconds: float,
) -> None:
    run, plain, guided = session.run, scores["ddim", 1.0], scores["ddim", 1.5]
    scale = "full" if run.preset != "ci" else "reduced"
    for claim, name in _GATES:
        reason = ATTEMPTS_AT_M2 if claim == "M2" and run.preset == "default" else ""
        run.record(claim, [Cell("DDIM, scale 1", values=plain[name])], seconds=seconds, scale=scale, reason=reason)
    trials = session.labels(session.config.seeds).size
    right = round(float(guided["accuracy"].mean()) * trials)
    run.record("M7", [Cell("DDIM, scale 1.5", successes=right, trials=trials)], seconds=seconds, scale=scale)
    falls = Cell("recall, 1 less 3", values=plain["recall"], control=scores["ddim", 3.0]["recall"])
    rises = Cell("precision, 1.5 less 0", values=guided["precision"], control=scores["ddim", 0.0]["precision"])
    run.record("M11", [falls], seconds=2 * seconds, scale=scale)
    run.record("M12", [rises], seconds=2 * seconds, scale=scale)
    pairs = [
        Cell(judging.NAMES[name], values=scores[_PAIR[0]][name] - scores[_PAIR[1]][name]) for name in _PAIR_STATISTICS
    ]
    run.record("M13", pairs, seconds=2 * seconds, scale=scale)


def _tell(session: Session, scores: Mapping[tuple[str, float], Scores], rulers: Mapping[str, Scores]) -> None:
    """Write the table of all scores into the report and the arrays."""
    session.run.note(
        "Every score compares samples, clipped to [-1, 1], with the held-out digits. Spreads are over sampling seeds "
        "of one trained network, or over subsets of the training images: they say nothing of other training seeds."
    )
    rows = {f"{TITLES[sampler]} at scale {scale:g}": found for (sampler, scale), found in scores.items()}
    rows = {**rulers, **rows}
    for row, found in rows.items():
        told = [f"{title} {judging.told(found[name])}" for name, title in judging.NAMES.items()]
        session.run.note(f"{row} (mean and standard deviation): {', '.join(told)}.")
    session.run.arrays(
        score_rows=list(rows),
        score_names=list(judging.NAMES),
        score_means=[[found[name].mean() for name in judging.NAMES] for found in rows.values()],
        score_stds=[[found[name].std(ddof=1) for name in judging.NAMES] for found in rows.values()],
    )
    figures.table(session.run, rows)


def _curves(session: Session, rulers: Mapping[str, Scores]) -> None:
    """Measure quality against the guidance scale and against the number of steps."""
    config, run, seeds = session.config, session.run, session.config.curve_seeds
    scales = {"ddim": config.scales, "flow": config.scales, "pcg": config.scales}
    points = [("guidance", sampler, scale, config.sampling_steps) for sampler, of in scales.items() for scale in of]
    points += [("steps", sampler, 1.0, steps) for sampler in TITLES for steps in config.step_counts]
    found: dict[str, dict[str, list[Scores]]] = {"guidance": {}, "steps": {}}
    with run.progress(len(points), "quality curves") as progress:
        for number, (curve, sampler, scale, steps) in enumerate(points, start=1):
            samples = session.samples(sampler, scale, seeds, steps)
            found[curve].setdefault(sampler, []).append(
                judging.score_all(session.judge, samples, session.labels(seeds), classify=False)
            )
            progress.update(number)
            _stop_here(run)
    for curve, abscissas in (("guidance", config.scales), ("steps", config.step_counts)):
        means = {
            sampler: {name: np.array([row[name].mean() for row in rows]) for name in rows[0]}
            for sampler, rows in found[curve].items()
        }
        run.arrays(**{f"{curve}_{s}_{name}": value for s, of in means.items() for name, value in of.items()})
        run.arrays(**{f"{curve}_x": np.asarray(abscissas, float)})
        figures.quality(run, curve, abscissas, means, rulers)


def _stop_here(run: RunDirectory) -> None:
    if run.stop():
        raise Interrupted
