import os
import subprocess
import sys

import pytest

from hapre_jax import xla_flags

PROGRAM = """
import jax, os
from hapre_jax import cli
def main(argv):
    jax.jit(lambda x: x + 1)(1)  # XLA refuses flags that it does not know
    print(os.environ["XLA_FLAGS"])
cli.run(main)
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "",
            "--xla_gpu_enable_triton_gemm=false "
            "--xla_gpu_enable_command_buffer=+CONVOLUTION",
        ),
        (
            "--xla_gpu_enable_triton_gemm=true --xla_gpu_autotune_level=0",
            "--xla_gpu_enable_triton_gemm=true --xla_gpu_autotune_level=0 "
            "--xla_gpu_enable_command_buffer=+CONVOLUTION",
        ),
    ],
)
def test_programs_start_with_flags_that_users_may_change(given, expected):
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"XLA_FLAGS": given},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == expected


def test_flags_are_added_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    xla_flags.add()
    once = os.environ["XLA_FLAGS"]
    xla_flags.add()
    assert os.environ["XLA_FLAGS"] == once
