"""Measures how time and memory of a step grow, and fits the exponents.

    python benchmarks/scaling.py                              # ResNet-8, for CPUs
    python benchmarks/scaling.py --net resnet18 --side 224 --batch 32 --dtype bfloat16

(`PYTHONPATH=. python ...` where the package is not installed.)

One setting is changed at a time: images in a batch, pixels of a side, boxes that are
tried, cells of the policy's grid, and devices, where there are several. The exponent is
the slope of log time, or memory, against the log of the setting. Memory is what XLA
plans for a step, parameters included; times are of the fastest run. On a CPU they are
seconds of all cores together, which other programs change least.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import config as config_lib
from hapre_jax import optimization, sharding, train_state, train_step, xla_flags
from hapre_jax.methods import hapre

CLASSES = 3


def measure(*, net, dtype, batch, side, tried, grid, devices, repeat):
    """Seconds and bytes of one step."""
    shared = {"net": net, "image_size": side, "dtype": dtype}
    config = config_lib.Config(
        data=config_lib.DataConfig(image_size=side),
        task=config_lib.TaskConfig(**shared),
        # Beside the samples, the whole image and the mean are tried.
        policy=config_lib.PolicyConfig(
            grid=grid, samples=tried - 2, train_crops=1, **shared
        ),
        train=config_lib.TrainConfig(batch_size=batch, devices=devices),
    )
    method, optimizer = hapre.make(config, CLASSES), optimization.make_optimizer(config)
    mesh = sharding.make_mesh(config.train)
    # Not zeros, which some processors multiply faster.
    now = jax.tree.map(
        lambda x: jnp.full(x.shape, 0.01, x.dtype), train_state.blank(method, config)
    )
    now = sharding.put_state(now, mesh)
    image = np.random.default_rng(0).integers(0, 256, (batch, side, side, 1), np.uint8)
    label, index = np.arange(batch) % CLASSES, np.arange(batch)
    inputs = {"image": image, "label": label, "index": index}
    inputs = {k: v if k == "image" else v.astype(np.int32) for k, v in inputs.items()}
    inputs = sharding.put_batch(inputs, mesh)
    step = train_step.make_step(method, optimizer, config, mesh)
    (root,) = step.args
    step = step.func.lower(root, now, inputs).compile()
    memory = step.memory_analysis()
    clock = time.perf_counter
    if jax.default_backend() == "cpu":
        clock = time.process_time
    times = []
    for _ in range(repeat + 1):
        start = clock()
        now, metrics = step(root, now, inputs)
        jax.block_until_ready((now, metrics))
        times.append(clock() - start)
    planned = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return min(times[1:]), planned


def exponent(values, measured):
    """Slope of the logs, by least squares."""
    return float(np.polyfit(np.log(values), np.log(measured), 1)[0])


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", default="resnet8", help="of both (default resnet8)")
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--side", type=int, default=64, help="pixels (default 64)")
    parser.add_argument("--repeat", type=int, default=5, help="runs (default 5)")
    parser.add_argument("--out", help="file for the results as JSON")
    arguments = parser.parse_args()
    xla_flags.add()
    batch, side = arguments.batch, arguments.side
    base = {"batch": batch, "side": side, "tried": 4, "grid": 16, "devices": 1}
    axes = {
        "batch": [batch // 4, batch // 2, batch, 2 * batch, 4 * batch],
        "side": [side // 2, side, 2 * side, 4 * side],
        "tried": [4, 8, 16, 32],
        "grid": [4, 8, 16, 32],
        "devices": [n for n in (1, 2, 4, 8) if n <= jax.device_count()],
    }
    print(f"{arguments.net}, {arguments.dtype}, {jax.devices()[0].device_kind}; {base}")
    results = {}
    for name, values in axes.items():
        if len(values) < 2:
            continue
        found = []
        for value in values:
            try:
                found.append(
                    measure(
                        net=arguments.net,
                        dtype=arguments.dtype,
                        repeat=arguments.repeat,
                        **base | {name: value},
                    )
                )
            except jax.errors.JaxRuntimeError as error:  # as for want of memory
                print(f"  {name:8}{value:6}: {str(error).splitlines()[0]}", flush=True)
                break  # larger ones take more
        values = values[: len(found)]
        if len(found) < 2:
            continue
        seconds, sizes = zip(*found, strict=True)
        results[name] = {"values": values, "seconds": seconds, "bytes": sizes}
        for value, took, size in zip(values, seconds, sizes, strict=True):
            print(f"  {name:8}{value:6}{1e3 * took:10.1f} ms{size / 2**20:10.1f} MiB")
        print(
            f"  {name}: time ~ {name}^{exponent(values, seconds):.2f}, "
            f"memory ~ {name}^{exponent(values, sizes):.2f}",
            flush=True,
        )
        jax.clear_caches()
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
