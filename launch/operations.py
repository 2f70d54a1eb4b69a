"""Does a policy find the operation that undoes what was done to films?

python launch/operations.py --quality rotated --operation rotation --out rotated.json
python launch/operations.py --quality exposed --operation gamma
python launch/operations.py --quality rotated_exposed --operation rotation+gamma
python launch/operations.py --quality rotated --operation plain

On the variants of the phantoms, whose right rotation and gamma are known: small
networks, 1,500 films of 48 pixels shown at 16, a minute a seed on one core. `plain` is
the classifier of the films as they are, with as many updates. Prints, a line a seed,
the accuracy on 300 test films and how far what was found is from the truth.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
import rich.console

from hapre_jax import cli, config, evaluate, log, state
from hapre_jax.data import phantom
from hapre_jax.methods import METHODS

_FILMS, _TEST, _SIDE, _SEEN = 1500, 300, 48, 16


def settings(quality: str, operation: str, *, steps: int, seed: int) -> config.Config:
    """Of one run; what is not said here is the default of `hapre_jax.train`."""
    is_plain = operation == "plain"
    return config.Config(
        method="plain" if is_plain else "hapre",
        seed=seed,
        data=config.DataConfig(image_size=_SIDE, quality=quality),
        task=config.TaskConfig(image_size=_SEEN),
        policy=config.PolicyConfig(
            operation="none" if is_plain else operation,
            image_size=_SEEN,
            grid=8,
            train_crops=2,
        ),
        train=config.TrainConfig(steps=steps, batch_size=16),
    )


def run(quality: str, operation: str, *, steps: int, seed: int, films: int) -> dict:
    """Trains on `films` phantoms; accuracy and parameters on the next 300."""
    made = [
        phantom.make(index, quality=quality, size=_SIDE, seed=seed)
        for index in range(films + _TEST)
    ]
    images = np.stack([film.image for film in made])[..., None]
    labels = np.array([film.label for film in made], np.int32)
    tested = made[films:]
    truth = {
        "rotation": np.array([film.rotation for film in tested]),
        "log2_gamma": np.log2([film.gamma for film in tested]),
    }
    chosen = settings(quality, operation, steps=steps, seed=seed)
    method = METHODS[chosen.method](chosen, int(labels.max()) + 1)
    optimizer = state.make_optimizer(chosen)
    now = state.init(method, optimizer, chosen)
    step_fn = state.make_step(method, optimizer, chosen)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, films, chosen.train.batch_size)
        batch = {"image": images[rows], "label": labels[rows]}
        now, _ = step_fn(now, batch | {"index": rows.astype(np.int32)})
    predict = evaluate.make_predict(method)
    found = jax.device_get(predict(*now.average, {"image": images[films:]}))
    answers = np.argmax(found.probabilities, axis=1)
    return {
        "seed": seed,
        "accuracy": float(np.mean(answers == labels[films:])),
        "parameters": {
            name: evaluate.score_parameter(values, truth.get(name))
            for name, values in (found.parameters or {}).items()
        },
    }


def main(argv: list[str]) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python launch/operations.py")
    parser.add_argument("--quality", choices=sorted(phantom.VARIANTS), required=True)
    text = "plain, or what policy.operation takes"
    parser.add_argument("--operation", required=True, help=text)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--films", type=int, default=_FILMS)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file of the results")
    options = parser.parse_args(argv)
    console, results = rich.console.Console(), []
    for seed in map(int, options.seeds.split(",")):
        found = run(
            options.quality,
            options.operation,
            steps=options.steps,
            seed=seed,
            films=options.films,
        )
        results.append(found)
        line = f"seed {seed}: accuracy {found['accuracy']:.3f}"
        for name, scores in found["parameters"].items():
            known = {k: v for k, v in scores.items() if v is not None}
            line += f"; {name} " + ", ".join(f"{k} {v:.3f}" for k, v in known.items())
        log.say(console, line)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
