"""Times answers to films in files against PyTorch, the same networks in both.

    pip install -e '.[torch]'
    python benchmarks/predict.py --films 200 --side 1024

From PNG files of `side` pixels to a CSV: decoding, letterbox, policy, crop, classifier.
Ours is `answer_folder.predict_films`; the rival is what one would write in PyTorch, in
batches of the same size, films read ahead in as many threads. Answers are compared
first, then both run in turn; ratios are of medians, above 1 where we are faster.
"""

import argparse
import concurrent.futures
import csv
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import rich.console
import rich.table
import step
import torch
import torch_step
from PIL import Image

from hapre_jax import config as config_lib
from hapre_jax import train_state, xla_flags
from hapre_jax.data import images, inputs
from hapre_jax.method import to_float
from hapre_jax.methods import hapre
from hapre_jax.serving import answer_folder, inference

CLASSES = ("normal", "bacterial", "viral")
STORED = 512  # pixels of a side of what the key area is cut from


def ours(net, size, threads):
    """The model of `hapre_jax` with the rival's weights."""
    shared = {"net": net, "image_size": size, "norm": "batch"}
    config = config_lib.Config(
        data=config_lib.DataConfig(image_size=STORED, threads=threads),
        task=config_lib.TaskConfig(normalize="fixed", **shared),
        policy=config_lib.PolicyConfig(
            grid=step.GRID, width=step.WIDTH, min_side=torch_step.MIN_SIDE, **shared
        ),
    )
    method = hapre.make(config, len(CLASSES))
    like = train_state.blank(method, config)
    variables = step.as_ours(net, like.params, like.model_state)
    variables = jax.device_put(variables)

    @jax.jit
    def answer(variables, pixels):
        return method.predict(*variables, to_float({"image": pixels}))

    return inference.Model(
        config, CLASSES, lambda pixels: answer(variables, pixels), None, None, None
    )


def run_ours(model, paths, out):
    """Answers all films."""
    answer_folder.predict_films(model, inputs.find(map(str, paths)), out)


class Rival:
    """The same in PyTorch."""

    def __init__(self, net, size, threads):
        self.size, self.threads = size, threads
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        networks = torch_step.networks(
            net, grid=step.GRID, width=step.WIDTH, classes=len(CLASSES)
        )
        self.task, self.policy = (of.to(self.device).eval() for of in networks)

    def read(self, path):
        """A film as a square `u8[S, S]`."""
        image = Image.open(path).convert("L")
        return images.fit(image, size=STORED, geometry="letterbox")[:, :, 0]

    @torch.inference_mode()
    def answer(self, pixels):
        """Probabilities `[B, 3]` and key areas `[B, 4]` of `u8[B, S, S]`."""
        image = torch.from_numpy(pixels).to(self.device).float() / 255
        shape = (self.size, self.size)
        small = torch.nn.functional.interpolate(
            image[:, None], shape, mode="bilinear", antialias=True
        )
        seen = torch_step.normalize(small)
        logits = self.policy(seen.contiguous(memory_format=torch.channels_last), False)
        area = torch_step.rescale(torch_step.mean_box(logits), 1.0)
        crop = torch_step.normalize(torch_step.crop(image, area, self.size))[:, None]
        crop = crop.contiguous(memory_format=torch.channels_last)
        shares = self.task(crop, False).float().softmax(1)
        return shares.cpu().numpy(), area.cpu().numpy()

    def run(self, paths, out):
        """Answers all films, and writes a CSV of them."""
        out.mkdir()
        count = inference.BATCH
        with (
            concurrent.futures.ThreadPoolExecutor(self.threads) as pool,
            open(out / "predictions.csv", "w", newline="") as file,
        ):
            table = csv.writer(file)
            chunks = [paths[i : i + count] for i in range(0, len(paths), count)]
            ahead = [[pool.submit(self.read, path) for path in c] for c in chunks[:2]]
            for number, chunk in enumerate(chunks):
                pixels = np.stack([film.result() for film in ahead.pop(0)])
                if number + 2 < len(chunks):
                    following = chunks[number + 2]
                    ahead.append([pool.submit(self.read, path) for path in following])
                shares, areas = self.answer(pixels)
                for path, share, area in zip(chunk, shares, areas, strict=True):
                    answer = CLASSES[int(share.argmax())]
                    table.writerow([path, answer, *share, *area])


def write_films(folder, count, side):
    """PNG files of smooth noise, which decode about as slowly as films."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = random.integers(0, 256, (side // 8, side // 8), np.uint8)
        film = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        noise = random.integers(-4, 5, (side, side))
        pixels = np.clip(np.asarray(film) + noise, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:05}.png")
        paths[-1].write_bytes(images.png(Image.fromarray(pixels)))
    return paths


def main():
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="resnet18", choices=sorted(torch_step.STAGES))
    parser.add_argument("--size", type=int, default=224, help="of what networks see")
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--side", type=int, default=1024, help="pixels of a film")
    parser.add_argument("--threads", type=int, default=2, help="that read films")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    xla_flags.add()
    model = ours(arguments.net, arguments.size, arguments.threads)
    rival = Rival(arguments.net, arguments.size, arguments.threads)
    times: dict[str, list[float]] = {"hapre_jax": [], "PyTorch": [], "reading": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        paths = write_films(folder, arguments.films, arguments.side)
        first = np.stack([rival.read(path) for path in paths[: inference.BATCH]])
        found = model.predict(first[..., None])
        shares, areas = rival.answer(first)
        for name, mine, other in (
            ("probabilities", found.probabilities, shares),
            ("key areas", found.area, areas),
        ):
            difference = np.abs(np.asarray(mine) - other).max()
            print(f"{name} differ by at most {difference:.1e}")
            assert difference < 1e-3, name
        for number in range(arguments.rounds + 1):  # the first one compiles
            for name, run in (
                ("hapre_jax", lambda out: run_ours(model, paths, out)),
                ("PyTorch", lambda out: rival.run(paths, out)),
                ("reading", lambda out: read_only(rival, paths, arguments.threads)),
            ):
                started = time.perf_counter()
                run(folder / f"{name}-{number}")
                if number:
                    times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(of) for name, of in times.items()}
    films = f"{arguments.films} PNG films of {arguments.side} pixels"
    device = jax.devices()[0].device_kind
    table = rich.table.Table(title=f"{arguments.net}, {films}, {device}")
    for head in ("", "films/s", "of reading alone", "ours / this"):
        table.add_column(head, justify="right")
    for name, median in medians.items():
        table.add_row(
            name,
            f"{arguments.films / median:.1f}",
            f"{medians['reading'] / median:.2f}",
            f"{median / medians['hapre_jax']:.2f}",
        )
    rich.console.Console().print(table)


def read_only(rival, paths, threads):
    """What films cost before any network."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(rival.read, paths):
            pass


if __name__ == "__main__":
    main()
