"""Lungs segmented by a U-Net, with learned pre-processing or of the whole film.

python launch/segmentation.py --workdir runs/segmentation/key_area
python launch/segmentation.py --workdir runs/segmentation/whole --policy.operation none
python launch/segmentation.py --data.name ped_pneumonia --data.root DIR \
    --data.degrade low --data.image_size 128 --workdir runs/segmentation/films

The loop is the framework's, the task another: the operation is applied to film and
mask, and the network's answer is brought back to the whole film, where it is scored.
Takes the flags of hapre_jax.train; the network is a U-Net whatever task.net says. It
trains in one go and writes results.json and answers.png: films, true masks, answers.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from PIL import Image

from hapre_jax import boxes, checkpoint, cli, framework, log, metrics, nets, state
from hapre_jax import config as config_lib
from hapre_jax.config import Config
from hapre_jax.data import dataset, feed, pipeline
from hapre_jax.errors import UserError
from hapre_jax.methods import hapre
from hapre_jax.tasks import Segmentation

_FILMS = 8  # in the picture


def make(config: Config) -> framework.Method:
    """The framework's method with a U-Net as task network."""
    settings = config.policy
    task = Segmentation(
        nets.UNet(norm=config.task.norm),
        config.task.image_size,
        whole_size=config.data.image_size,
        normalize=config.task.normalize,
    )
    operation = hapre.operation(settings)
    return framework.make(
        task,
        hapre.policy_network(settings, operation),
        operation,
        hapre.learning(config),
        policy_image_size=settings.image_size,
        policy_normalize=config.task.normalize,
    )


def train(
    config: Config, method: framework.Method, films: dataset.Dataset, update
) -> state.TrainState:
    """The state after the last step."""
    optimizer = state.make_optimizer(config)
    now = state.init(method, optimizer, config)
    step_fn = state.make_step(method, optimizer, config)
    batches = feed.train_iterator(
        films, batch_size=config.train.batch_size, seed=config.seed
    )
    for step in range(1, config.train.steps + 1):
        now, found = step_fn(now, next(batches))
        if step % config.train.log_every == 0:
            found = {name: float(value) for name, value in found.items()}
            if not np.isfinite(found["task_loss"]):
                raise UserError(f"task_loss is not finite at step {step}")
            shown = ("task_loss", "reward", "lung_iou")
            said = [f"{name} {found[name]:.3f}" for name in shown if name in found]
            update(step, config.train.steps, "  ".join(said))
    return now


def evaluate(config: Config, method: framework.Method, now, films) -> tuple[dict, list]:
    """Mean scores of masks on whole films, and the first answers."""

    @jax.jit
    def answer(average, batch):
        batch = state.to_float(batch)
        found = method.predict(*average, batch)
        masks = found.probabilities > 0.5, batch["lungs"] > 0.5
        scores = {
            "dice": jax.vmap(metrics.dice)(*masks),
            "iou": jax.vmap(metrics.mask_iou)(*masks),
        }
        if found.action is not None:
            lungs = jax.vmap(lambda m: boxes.bounding_box(m[..., 0]))(masks[1])
            scores["side"] = jnp.sqrt(jax.vmap(boxes.area)(found.action))
            scores["lungs_covered"] = jax.vmap(boxes.coverage)(found.action, lungs)
            scores["lung_iou_of_area"] = jax.vmap(boxes.iou)(found.action, lungs)
        return scores, masks[0]

    chunks, pictures = [], []
    for batch in feed.eval_batches(films, min(32, len(films))):
        scores, found = jax.device_get(answer(now.average, batch))
        chunks.append(scores)
        if len(pictures) < _FILMS:
            pictures += list(zip(batch["image"], batch["lungs"], found, strict=True))
    scores = {
        name: float(np.mean(np.concatenate([of[name] for of in chunks])[: len(films)]))
        for name in chunks[0]
    }
    return scores, pictures[:_FILMS]


def main(argv: list[str]) -> int:
    """The program."""
    config, arguments = cli.parse(
        argv,
        program="python launch/segmentation.py",
        description="Segment lungs with a U-Net behind a learned operation.",
        default_config="configs/phantom.py",
    )
    console, workdir = rich.console.Console(), pathlib.Path(arguments.workdir)
    if (workdir / "results.json").exists():
        raise UserError(f"{workdir} holds a finished run; name another --workdir")
    if config.task.image_size % 4:
        raise UserError(
            f"task.image_size is {config.task.image_size}, but the U-Net halves it "
            "twice: it must be a multiple of 4"
        )
    started = time.perf_counter()
    with log.progress_bar(console, f"{config.data.name} images") as update:
        data = pipeline.load(config.data, seed=config.seed, progress=update, masks=True)
    method = make(config)
    with log.progress_bar(console, config.policy.operation) as update:
        now = train(config, method, data.train, update)
    scores, pictures = evaluate(config, method, now, data.test)
    workdir.mkdir(parents=True, exist_ok=True)
    rows = [
        np.hstack([film[..., 0], mask[..., 0], np.uint8(255) * found[..., 0]])
        for film, mask, found in pictures
    ]
    Image.fromarray(np.vstack(rows)).save(workdir / "answers.png")
    results = {
        "config": config_lib.to_dict(config),
        "n": len(data.test),
        "test": scores,
        "seconds": time.perf_counter() - started,
    }
    checkpoint.write_json(workdir / "results.json", results)
    said = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
    log.say(console, f"{len(data.test)} test films: {said}")
    log.say(console, f"Everything is in {workdir}: results.json, answers.png")
    return 0


if __name__ == "__main__":
    cli.run(main)
