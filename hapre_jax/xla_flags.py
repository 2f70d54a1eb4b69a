"""Flags of XLA that our programs start with; they change what GPUs do.

    XLA_FLAGS="--xla_gpu_enable_triton_gemm=false \
        --xla_gpu_enable_command_buffer=+CONVOLUTION" python my_program.py

does the same for a program of your own.
"""

import os

FLAGS = {
    # The pass that joins a product with what it reads aborts the process where that is
    # every second pixel (jax 0.11.2), and gains nothing here.
    "xla_gpu_enable_triton_gemm": "false",
    # Convolutions belong to CUDA graphs too, so that a step is a single launch.
    "xla_gpu_enable_command_buffer": "+CONVOLUTION",
}


def add() -> None:
    """Adds them to the environment, but those that the user has set.

    It has to be called before JAX touches a device.
    """
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *added])
