"""Times the published step with `policy.skip_neighbors`, against without it.

    python benchmarks/skip_neighbors.py                       # ResNet-18, for CPUs
    python benchmarks/skip_neighbors.py --side 640 --dtype bfloat16 --repeat 50

(`PYTHONPATH=. python ...` where the package is not installed.)

Algorithm 1 asks for the expanded and the shrunk area only where the detected one does
not help. Three steps are timed in turns: one that always tries both, one that would
skip them but may not, as an area does not help, and one that skips them. On a CPU times
are seconds of all cores together, which other programs change least.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import config as config_lib
from hapre_jax import optimization, train_state, train_step, xla_flags
from hapre_jax.methods import hapre

CLASSES = 3
# The policy starts at the whole image: D1 is 0 and both neighbors are tried. A key area
# of half the sides, where area is dear, has D1 < 0 whatever the classifier says of it.
STEPS = {
    "tried": {"skip_neighbors": False},
    "needed": {"skip_neighbors": True},
    "skipped": {
        "skip_neighbors": True,
        "max_side": 0.5,
        "area_cost": 100.0,
        "final_area_cost": 100.0,
    },
}


def prepare(net, side, batch, dtype, changes):
    """A function that takes one step, and says how many of its areas helped."""
    shared = {"net": net, "image_size": side, "dtype": dtype}
    shared["norm"] = "frozen" if batch == 1 else "batch"
    config = config_lib.Config(
        data=config_lib.DataConfig(image_size=side),
        task=config_lib.TaskConfig(**shared),
        policy=config_lib.PolicyConfig(
            estimator="paper", explore=False, warmup_steps=0, **shared, **changes
        ),
        # At such a rate the policy stays where it starts.
        train=config_lib.TrainConfig(batch_size=batch, policy_learning_rate=1e-12),
    )
    method, optimizer = hapre.make(config, CLASSES), optimization.make_optimizer(config)
    # Not zeros, which some processors multiply faster; but a policy of zeros keeps the
    # whole image.
    blank = train_state.blank(method, config)
    now = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), blank)
    zeros = jax.tree.map(jnp.zeros_like, blank.params["policy"])
    now = now._replace(params=now.params | {"policy": zeros})
    image = np.random.default_rng(0).integers(0, 256, (batch, side, side, 1), np.uint8)
    label, index = np.arange(batch) % CLASSES, np.arange(batch)
    inputs = {"image": image, "label": label, "index": index}
    inputs = {k: v if k == "image" else v.astype(np.int32) for k, v in inputs.items()}
    inputs = jax.device_put(inputs)
    step = train_step.make_step(method, optimizer, config)

    def run():
        nonlocal now
        now, metrics = step(now, inputs)
        return float(metrics["helped"])

    return run


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", default="resnet18", help="of both (default resnet18)")
    parser.add_argument("--side", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    parser.add_argument("--repeat", type=int, default=5, help="runs (default 5)")
    arguments = parser.parse_args()
    xla_flags.add()
    clock = time.perf_counter
    if jax.default_backend() == "cpu":
        clock = time.process_time
    print(f"{arguments.net}, {arguments.side} pixels, {arguments.dtype}")
    for batch in arguments.batches:
        runs = {
            name: prepare(
                arguments.net, arguments.side, batch, arguments.dtype, changes
            )
            for name, changes in STEPS.items()
        }
        for name, run in runs.items():
            helped = run()
            assert helped == (name == "skipped"), f"{name}: {helped:.0%} helped"
        times = {name: [] for name in STEPS}
        for _ in range(arguments.repeat):
            for name, run in runs.items():
                start = clock()
                run()
                times[name].append(clock() - start)
        medians = {name: statistics.median(of) for name, of in times.items()}
        print(
            f"  batch {batch}: tried {1e3 * medians['tried']:.1f} ms; ratios: "
            + ", ".join(
                f"{name} {medians[name] / medians['tried']:.2f}"
                for name in ("needed", "skipped")
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
