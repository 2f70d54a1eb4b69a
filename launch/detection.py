"""Consolidations found by a small detector, with learned pre-processing or without.

python launch/detection.py --operation key_area
python launch/detection.py --operation none

On phantoms of quality `low` with a consolidation each, and blobs outside of the lungs
that look like one. The loop is the framework's; boxes are shown as the operation shows
the film, and what is found is brought back to the whole film, where it is scored.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
import rich.console

from hapre_jax import boxes, cli, config, framework, log, metrics, nets, state
from hapre_jax.data import phantom
from hapre_jax.methods import hapre
from hapre_jax.tasks import Detection

_SIDE, _TEST = 64, 200


def make(settings: config.Config) -> framework.Method:
    """The framework's method with a detector as task network."""
    trunk = nets.NETS[settings.task.net](num_classes=0, norm=settings.task.norm)
    operation = hapre.operation(settings.policy)
    return framework.make(
        Detection(nets.CenterNet(trunk, grid=8), settings.task.image_size),
        hapre.policy_network(settings.policy, operation),
        operation,
        hapre.learning(settings),
        policy_image_size=settings.policy.image_size,
        policy_normalize=settings.task.normalize,
    )


def draw(count: int, *, first: int, seed: int) -> tuple[dict, np.ndarray]:
    """A batch of phantoms with one box each, and their lung boxes."""
    films = [
        phantom.make(3 * (first + index) + 1, size=_SIDE, seed=seed)
        for index in range(count)
    ]
    batch = {
        "image": np.stack([film.image for film in films])[..., None],
        "boxes": np.stack([film.lesion_box for film in films])[:, None],
        "label": np.zeros(count, np.int32),
        "index": np.arange(count, dtype=np.int32),
    }
    return batch, np.stack([film.lung_box for film in films])


def run(operation: str, *, seed: int, steps: int, films: int) -> dict[str, float]:
    """Trains on `films` phantoms and scores the next 200."""
    settings = config.Config(
        seed=seed,
        data=config.DataConfig(image_size=_SIDE),
        task=config.TaskConfig(image_size=24),
        policy=config.PolicyConfig(
            operation=operation, image_size=16, grid=8, train_crops=2
        ),
        train=config.TrainConfig(steps=steps, batch_size=16),
    )
    method = make(settings)
    optimizer = state.make_optimizer(settings)
    now = state.init(method, optimizer, settings)
    step_fn = state.make_step(method, optimizer, settings)
    train, _ = draw(films, first=0, seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, films, settings.train.batch_size)
        now, _ = step_fn(now, {name: of[rows] for name, of in train.items()})
    test, lungs = draw(_TEST, first=films, seed=seed)
    found = jax.jit(method.predict)(*now.average, state.to_float(test))
    answers = np.asarray(found.probabilities)
    scores = {
        f"AP at IoU {at}": metrics.average_precision(
            answers[..., 0], answers[..., 1:], test["boxes"], min_iou=at
        )
        for at in (0.25, 0.5)
    }
    if found.action is not None:
        scores["lung_iou"] = float(
            np.mean(jax.vmap(boxes.iou)(found.action, jax.numpy.asarray(lungs)))
        )
    return scores


def main(argv: list[str]) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python launch/detection.py")
    parser.add_argument("--operation", default="key_area", help="policy.operation")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--films", type=int, default=800)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file of the results")
    options = parser.parse_args(argv)
    results = []
    for seed in map(int, options.seeds.split(",")):
        scores = run(
            options.operation, seed=seed, steps=options.steps, films=options.films
        )
        results.append({"seed": seed, **scores})
        said = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        log.say(rich.console.Console(), f"seed {seed}: {said}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
