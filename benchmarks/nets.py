"""Times our networks against PyTorch's, side by side in one process.

    pip install -e '.[torch]'
    python benchmarks/nets.py --nets resnet18 densenet121 --side 224 --batch 4

Both compute the same numbers, which is checked first. Runs alternate, so that what else
the machine does meets both alike; the ratio is of medians, below 1 where we are faster.
"""

import argparse
import functools
import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch

from hapre_jax import losses, nets, pretrained, xla_flags

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "densenet169",
    "vgg16",
    "vgg19",
)
CLASSES = 3


def import_torchvision():
    """Torchvision, also where PyTorch is a CPU build and lacks what it refers to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(
                    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            import torchvision

            torchvision.operators = library
    return torchvision


def ours(name, model, image, labels):
    """Forward and training pass with the weights of a PyTorch model."""
    net = nets.NETS[name](num_classes=CLASSES)
    tensors = {key: x.cpu().numpy().copy() for key, x in model.state_dict().items()}
    init = functools.partial(net.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    params = shapes.pop("params")
    loaded = pretrained.convert(tensors, name, params, shapes)
    params, stats = jax.device_put((loaded.params, loaded.model_state))

    @jax.jit
    def forward(params):
        return net.apply({"params": params, **stats}, image, train=False).logits

    @jax.jit
    @jax.grad
    def backward(params):
        output, _ = net.apply(
            {"params": params, **stats},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.mean(jax.vmap(losses.cross_entropy)(output.logits, labels))

    return (
        lambda: jax.block_until_ready(forward(params)),
        lambda: jax.block_until_ready(backward(params)),
    )


def theirs(model, image, labels, device):
    """The same passes of a PyTorch model."""
    image = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).to(device)
    labels = torch.from_numpy(labels).to(device)

    def synchronize(value):
        if device == "cuda":
            torch.cuda.synchronize()
        return value

    def forward():
        model.eval()
        with torch.inference_mode():
            return synchronize(model(image))

    def backward():
        model.train()
        model.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(image), labels).backward()
        synchronize(None)

    return forward, backward


def seconds(function):
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(torchvision, name, *, side, batch, repeat, device):
    """Median seconds of both libraries, by pass."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=CLASSES).to(device)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    labels = np.arange(batch) % CLASSES
    passes = zip(
        ours(name, model, image, labels),
        theirs(model, image, labels, device),
        strict=True,
    )
    results = []
    for index, (mine, other) in enumerate(passes):
        first, second = mine(), other()  # compiles, and warms up
        if index == 0:
            a, b = np.asarray(first), second.cpu().numpy()
            assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max(), name
        times = [(seconds(mine), seconds(other)) for _ in range(repeat)]
        results.append(
            [statistics.median(column) for column in zip(*times, strict=True)]
        )
    return results


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--side", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--batch", type=int, default=4, help="images (default 4)")
    parser.add_argument("--repeat", type=int, default=7, help="runs (default 7)")
    arguments = parser.parse_args()
    xla_flags.add()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = rich.table.Table(
        title=f"{arguments.batch} x {arguments.side}², {jax.devices()[0].device_kind}, "
        f"PyTorch on {device} with {torch.get_num_threads()} threads"
    )
    for title in ("network", "pass", "hapre_jax ms", "PyTorch ms", "ratio"):
        table.add_column(
            title, justify="left" if title in ("network", "pass") else "right"
        )
    torchvision = import_torchvision()
    for name in arguments.nets:
        results = compare(
            torchvision,
            name,
            side=arguments.side,
            batch=arguments.batch,
            repeat=arguments.repeat,
            device=device,
        )
        for title, (mine, other) in zip(
            ("forward", "forward + backward"), results, strict=True
        ):
            table.add_row(
                name,
                title,
                f"{1e3 * mine:.1f}",
                f"{1e3 * other:.1f}",
                f"{mine / other:.2f}",
            )
        jax.clear_caches()
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
