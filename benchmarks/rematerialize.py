"""Measures what `train.rematerialize` does to memory and operations of a gradient.

    python benchmarks/rematerialize.py                        # for CPUs
    python benchmarks/rematerialize.py --net resnet50 --side 640 --batch 16

(`PYTHONPATH=. python ...` where the package is not installed.)

Kept is what the forward pass hands to the gradient, as JAX traces it, without the
parameters; planned is what XLA then reserves beside arguments and results. Nothing is
computed.
"""

import argparse
import functools
import math

import jax
import jax.numpy as jnp

from hapre_jax import losses, nets, xla_flags

CLASSES = 3


def measure(*, name, dtype, batch, side, rematerialize):
    """Bytes kept, bytes planned and operations of the gradient of a classifier."""
    net = nets.NETS[name](num_classes=CLASSES, dtype=dtype, rematerialize=rematerialize)
    image = jax.ShapeDtypeStruct((batch, side, side, 1), jnp.float32)
    variables = dict(
        jax.eval_shape(
            functools.partial(net.init, train=False), jax.random.key(0), image
        )
    )
    params = variables.pop("params")

    def loss(params, rest, image):
        output, new = net.apply(
            {**rest, "params": params},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        label = jnp.zeros(batch, jnp.int32)
        return jnp.mean(jax.vmap(losses.cross_entropy)(output.logits, label)), new

    def backward(params, rest, image):
        _, kept, _ = jax.vjp(
            lambda params: loss(params, rest, image), params, has_aux=True
        )
        return kept

    residuals = jax.tree.leaves(jax.eval_shape(backward, params, variables, image))
    kept = sum(math.prod(x.shape) * x.dtype.itemsize for x in residuals)
    kept -= sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    compiled = gradient.lower(params, variables, image).compile()
    planned = compiled.memory_analysis().temp_size_in_bytes
    return kept, planned, compiled.cost_analysis()["flops"]


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", default="resnet18", help="(default resnet18)")
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--side", type=int, default=224, help="pixels (default 224)")
    arguments = parser.parse_args()
    xla_flags.add()
    print(f"{arguments.net}, {arguments.dtype}, {jax.devices()[0].device_kind}")
    for rematerialize in (False, True):
        kept, planned, flops = measure(
            name=arguments.net,
            dtype=arguments.dtype,
            batch=arguments.batch,
            side=arguments.side,
            rematerialize=rematerialize,
        )
        print(
            f"  rematerialize {str(rematerialize).lower():6}"
            f"{kept / 2**20:10.1f} MiB kept{planned / 2**20:10.1f} MiB planned"
            f"{flops / 1e9:10.1f} GFLOP",
            flush=True,
        )


if __name__ == "__main__":
    main()
