import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from hapre_jax import cli
def main(argv):
    # Needs 64 MiB of room in each call, 16,384 pages of 4 KiB.
    step = jax.jit(lambda x: jnp.sort(jnp.outer(x, x) + 1).sum())
    x = jnp.linspace(0, 1, 2048)
    for _ in range(3):
        step(x).block_until_ready()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step(x).block_until_ready()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
cli.run(main)
"""


def _pages(environment):
    """How many pages the system clears for a step of a program of ours."""
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    return int(said.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_programs_keep_the_memory_of_a_step_unless_users_say_otherwise():
    assert _pages({}) < 100
    assert _pages({"MALLOC_TRIM_THRESHOLD_": "131072"}) > 1000  # glibc's own
