"""What XLA makes of our step for an H200, on a machine that has no GPU.

    pip install 'jax[cuda13]'
    python benchmarks/gpu_program.py --cases resnet18:32:224:bfloat16

Shows by kind how many kernels a step has, what they read and write, and what memory is
planned; where XLA fails at the step, it fails here. No kernel is tried out, so that the
program on the device differs in its choices among them. Cases are those of `step.py`.
Needs CUDA's plugin of JAX, but not CUDA's driver.
"""

import argparse
import collections
import os
import pathlib
import re
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1]))
# Of the plugin: it looks for a device as it is loaded.
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ["JAX_PLATFORMS"] = ""

import step  # noqa: E402

from hapre_jax import xla_flags  # noqa: E402

# As XLA describes a device: `stream_executor/device_description.proto`.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 20 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


def compile_for(target, case, per_call):
    """The compiled step."""
    import jax
    from jax.experimental import topologies

    from hapre_jax import train_state, train_step

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topology, (1,), ("device",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    config, method, optimizer = step.program(case, per_call)
    step_fn = train_step.make_step(method, optimizer, config)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (
            *step_fn.args,
            train_state.blank(method, config),
            step.our_batch(case, per_call),
        ),
    )
    return step_fn.func.lower(*placed).compile()


def kernels(hlo):
    """Kind of kernel to how many there are and the bytes that they read and write."""
    counts, sizes = collections.Counter(), collections.Counter()
    for name, kind, size in step.instructions(hlo):
        kind = re.sub(r"[._\d]+$", "", name) if kind == "fusion" else kind
        kind = re.sub(r"[.\d]+$", "", name) if kind == "custom-call" else kind
        counts[kind] += 1
        sizes[kind] += size
    return {kind: (counts[kind], size) for kind, size in sizes.most_common()}


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=step.GPU_CASES[:1])
    parser.add_argument("--steps-per-call", type=int, default=1)
    parser.add_argument("--rows", type=int, default=20, help="kinds (default 20)")
    parser.add_argument("--hlo", help="file for the program of the last case")
    arguments = parser.parse_args()
    xla_flags.add()
    for text in arguments.cases:
        compiled = compile_for(H200, step.Case.read(text), arguments.steps_per_call)
        hlo, memory = compiled.as_text(), compiled.memory_analysis()
        found = kernels(hlo)
        count, size = (sum(column) for column in zip(*found.values(), strict=True))
        print(
            f"\n{text}: {count} kernels, {size / 1e9:.2f} GB read and written, "
            f"{memory.temp_size_in_bytes / 2**30:.2f} GiB of memory beside the state"
        )
        for kind, (count, size) in list(found.items())[: arguments.rows]:
            print(f"{size / 1e6:10.1f} MB {count:5} x {kind}")
        if arguments.hlo:
            pathlib.Path(arguments.hlo).write_text(hlo)


if __name__ == "__main__":
    main()
