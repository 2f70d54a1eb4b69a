"""The gradient of a classifier on CPUs: XLA's, and with what `nets.convolution` does.

python benchmarks/gradients.py
taskset -c 0 python benchmarks/gradients.py --cases resnet18:4:224 --rounds 20

A case is NETWORK:BATCH:SIDE. Compiles each variant once and runs them in turns, on one
core if it has one to itself; prints the least and the median processor time of each.
"""

import argparse
import os
import statistics
import time

# One core is what two libraries, or two variants, can be compared on.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false "
    "intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import freed_memory, nets, xla_flags
from hapre_jax.nets import convolution

CASES = ("resnet18:1:224", "resnet18:4:224", "resnet8:128:32")
_NEVER = 10**12
_SETTINGS = {"_LARGER", "_CACHED_BYTES", "_MANY_OUTPUTS"}
# Settings of `convolution`, numbers from which on it does something, that are so large
# in a variant that it never does.
VARIANTS = {
    "XLA's": _SETTINGS,
    "image's by products": {"_CACHED_BYTES", "_MANY_OUTPUTS"},
    "kernel's by parts": {"_LARGER", "_MANY_OUTPUTS"},
    "and by rows": {"_LARGER"},
    "all, and products forward": set(),
}


def compiled(name, batch, side):
    """A function that computes the gradient once, as `convolution` now has it."""
    network = nets.NETS[name](3)
    image = np.random.default_rng(0).normal(size=(batch, side, side, 1))
    image = jnp.array(image, jnp.float32)
    variables = network.init(jax.random.key(0), image[:1], train=False)

    def loss(params, statistics, image):
        output, new = network.apply(
            {"params": params, "batch_stats": statistics},
            image,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(jax.nn.logsumexp(output.logits, axis=-1)), new

    arguments = variables["params"], variables["batch_stats"], image
    gradient = jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments).compile()

    def run():
        jax.block_until_ready(gradient(*arguments))

    run()
    return run


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES, help="as resnet18:4:224")
    parser.add_argument("--rounds", type=int, default=9, help="runs (default 9)")
    arguments = parser.parse_args()
    freed_memory.keep()
    xla_flags.add()
    usual = {name: vars(convolution)[name] for name in _SETTINGS}
    for text in arguments.cases:
        name, batch, side = text.split(":")
        variants = {}
        for variant, without in VARIANTS.items():
            settings = {k: _NEVER if k in without else usual[k] for k in usual}
            vars(convolution).update(settings)
            variants[variant] = compiled(name, int(batch), int(side))
        times = {variant: [] for variant in variants}
        for _ in range(arguments.rounds):
            for variant, run in variants.items():
                began = time.process_time()
                run()
                times[variant].append(1e3 * (time.process_time() - began))
        print(text)
        for variant, found in times.items():
            middle = statistics.median(found)
            print(f"  {variant:25} {min(found):7.0f} ms, median {middle:7.0f} ms")


if __name__ == "__main__":
    main()
