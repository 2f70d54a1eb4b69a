"""Times how fast films are read, beside a PyTorch DataLoader that does the same work.

    pip install -e '.[torch]'
    python benchmarks/pipeline.py --workers 0 1 2 4 --step

Each film is a JPEG that is decoded, letterboxed and resized by the same function, which
is checked first; batches are shuffled and endless. A reader is started, takes what it
reads ahead without being timed, and is ended before the next one starts. Rounds
alternate, so that what else the machine does meets all alike; rates are medians, the
ratio is above 1 where we are faster.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
import warnings

import numpy as np
import rich.console
import rich.table
import torch
import torch.utils.data
from PIL import Image

from hapre_jax import config
from hapre_jax.data import feed, images, phantom, pipeline

GEOMETRY = "letterbox"


def draw(folder, *, films, side):
    """Phantoms as JPEG files, a folder for each class."""
    for index in range(films):
        film = phantom.make(index, size=side)
        path = folder / phantom.CLASSES[film.label] / f"{index}.jpeg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(film.image).save(path, quality=90)


class Films(torch.utils.data.Dataset):
    """The films of a `dataset.Dataset` below a folder."""

    def __init__(self, root, source, size):
        self.paths = [pathlib.Path(root, name) for name in source.names]
        self.labels, self.size = source.labels, size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        square = images.decode(
            path.read_bytes(), size=self.size, geometry=GEOMETRY, name=path.name
        )
        return torch.from_numpy(square.copy()), int(self.labels[index])


@contextlib.contextmanager
def ours(source, batch, **readers):
    """Our batches, read by so many threads or processes."""
    batches = feed.TrainIterator(source, batch_size=batch, seed=0, **readers)
    yield batches
    batches.close()


@contextlib.contextmanager
def theirs(films, batch, workers):
    """PyTorch's batches, read by so many processes."""
    yield iter(
        torch.utils.data.DataLoader(
            films,
            batch_size=batch,
            # Epochs without a pause in between, as ours are.
            sampler=torch.utils.data.RandomSampler(films, num_samples=1 << 40),
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
            # Grain's threads do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
        )
    )


def rate(opened, *, batch, batches, workers):
    """Images a second, once what was read ahead at the start is taken."""
    with opened as delivered:
        for _ in range(3 * workers + 2):
            next(delivered)
        start = time.perf_counter()
        for _ in range(batches):
            next(delivered)
        return batch * batches / (time.perf_counter() - start)


def check_same(source, films):
    """That both read the same pixels of the same films."""
    for index in range(0, len(films), max(1, len(films) // 8)):
        square, label = films[index]
        np.testing.assert_array_equal(source.images[index], square.numpy())
        assert source.labels[index] == label


def compare(streamed, kept, films, arguments):
    """Median rates by who reads, with how many workers."""
    batch = arguments.batch
    contenders = {}
    for n in arguments.workers:
        contenders["PyTorch", "", n] = lambda n=n: theirs(films, batch, n)
        contenders["ours", "threads", n] = lambda n=n: ours(streamed, batch, threads=n)
        if n:
            contenders["ours", "processes", n] = lambda n=n: ours(
                streamed, batch, processes=n
            )
    contenders["ours", "memory", 0] = lambda: ours(kept, batch)
    rates = {key: [] for key in contenders}
    for _ in range(arguments.rounds):
        for key, opened in contenders.items():
            rates[key].append(
                rate(
                    opened(),
                    batch=batch,
                    batches=arguments.batches,
                    workers=key[-1],
                )
            )
    return {key: statistics.median(values) for key, values in rates.items()}


def step_rate(size, batch, rounds):
    """Images a second of training a ResNet-18, and the device it is trained on."""
    import jax
    import jax.numpy as jnp
    import optax

    from hapre_jax import losses, nets

    net = nets.NETS["resnet18"](num_classes=len(phantom.CLASSES))
    image = np.random.default_rng(0).normal(size=(batch, size, size, 3))
    image, labels = jnp.asarray(image, jnp.float32), jnp.arange(batch) % 3
    variables = net.init(jax.random.key(0), image[:1], train=False)
    params, stats = variables.pop("params"), variables
    optimizer = optax.sgd(0.01, momentum=0.9)

    def loss(params, stats):
        output, stats = net.apply(
            {"params": params, **stats},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.mean(jax.vmap(losses.cross_entropy)(output.logits, labels)), stats

    @jax.jit
    def step(params, stats, slots):
        gradient, stats = jax.grad(loss, has_aux=True)(params, stats)
        updates, slots = optimizer.update(gradient, slots)
        return optax.apply_updates(params, updates), stats, slots

    state = jax.block_until_ready(step(params, stats, optimizer.init(params)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        state = jax.block_until_ready(step(*state))
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times), jax.devices()[0].device_kind


def show(rates, title):
    """Prints the rates, ours beside PyTorch's of as many workers."""
    table = rich.table.Table(title=title)
    for heading in ("read by", "workers", "hapre_jax images/s", "PyTorch", "ratio"):
        table.add_column(heading, justify="left" if heading == "read by" else "right")
    for (library, readers, workers), mine in rates.items():
        if readers == "memory":
            table.add_row("kept in memory", "", f"{mine:,.0f}", "", "")
        elif library == "ours":
            other = rates["PyTorch", "", workers]
            table.add_row(
                readers if workers else "the caller",
                str(workers),
                f"{mine:,.0f}",
                f"{other:,.0f}",
                f"{mine / other:.2f}",
            )
    rich.console.Console().print(table)


def run(root, arguments):
    """Compares all readers on the films below a folder."""
    data = config.DataConfig(
        name="folder",
        root=str(root),
        image_size=arguments.size,
        geometry=GEOMETRY,
        memory_gib=0,
    )
    streamed = pipeline.load(data, seed=0).train
    kept = streamed.take(np.arange(len(streamed)))
    films = Films(root, streamed, arguments.size)
    check_same(streamed, films)
    rates = compare(streamed, kept, films, arguments)
    show(rates, f"{len(films)} films, {arguments.batch} x {arguments.size}²")
    if arguments.step:
        trained, device = step_rate(arguments.size, arguments.batch, arguments.rounds)
        print(f"A ResNet-18 trains on {trained:,.0f} images/s on this {device}.")


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", help="folder of your films, a folder for each class")
    parser.add_argument("--films", type=int, default=256, help="drawn (default 256)")
    parser.add_argument("--side", type=int, default=1024, help="of these, in pixels")
    parser.add_argument("--size", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--batch", type=int, default=32, help="images (default 32)")
    parser.add_argument("--batches", type=int, default=16, help="timed (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="runs (default 3)")
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2, 4))
    parser.add_argument("--step", action="store_true", help="time a training step too")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    # As in its workers. Threads that share the stacking of a batch wait for each other
    # where the machine is busy.
    torch.set_num_threads(1)
    if arguments.root:
        run(pathlib.Path(arguments.root), arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            draw(root, films=arguments.films, side=arguments.side)
            run(root, arguments)


if __name__ == "__main__":
    main()
