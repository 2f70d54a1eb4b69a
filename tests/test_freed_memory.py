import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from hapre_jax import cli

def main(argv):
    # 16 MiB, 4,096 pages of 4 KiB.
    step = jax.jit(lambda x: jnp.outer(x, x))
    x = jnp.linspace(0, 1, 2048)
    cleared = []
    for _ in range(120):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step(x).block_until_ready()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        cleared.append(after - before > 2048)
    # At first the heap grows: small arrays lie between those of one step and another.
    print(sum(cleared[-40:]))

cli.run(main)
"""


def _steps_with_new_pages(environment):
    """Of the last 40 steps of a program of ours, those that the system had to clear."""
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_programs_keep_the_memory_of_a_step_unless_users_say_otherwise():
    assert _steps_with_new_pages({}) < 10
    # Glibc's own value; a threshold that it does not move by itself.
    assert _steps_with_new_pages({"MALLOC_MMAP_THRESHOLD_": "131072"}) == 40
