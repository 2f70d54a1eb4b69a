"""What programs compile is kept, in real processes."""

import os
import pathlib
import subprocess
import sys

import pytest

from hapre_jax import compilation_cache

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import jax
from hapre_jax import cli

cli.run(lambda argv: print(jax.jit(lambda x: x * 3)(14)))
"""


def _run(home, **variables):
    """Entries of the cache after a program has run, and their sizes."""
    kept = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    small = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=kept | small | {"XDG_CACHE_HOME": str(home)} | variables,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
    return {path: path.stat().st_size for path in home.rglob("*-cache")}


def test_a_program_keeps_what_it_compiled_and_mends_half_an_entry(tmp_path):
    entries = _run(tmp_path)
    assert entries
    for path, size in entries.items():
        assert path.parent.parent == tmp_path / "hapre_jax"
        os.truncate(path, size // 2)  # as a kill in the middle of a write leaves it
    # Sizes may differ by what the time of a compilation takes when compressed.
    assert _run(tmp_path) == pytest.approx(entries, abs=8)
    before = {path: path.stat().st_mtime_ns for path in entries}
    _run(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in entries}


def test_jax_s_own_variables_turn_it_off_and_move_it(tmp_path):
    assert not _run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    elsewhere = tmp_path / "elsewhere"
    entries = _run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(elsewhere))
    assert entries and all(path.parent == elsewhere for path in entries)


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path):
    (tmp_path / "hapre_jax").write_text("mine")
    assert not _run(tmp_path)


def test_the_oldest_entries_are_deleted_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "_LIMIT", 25)
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / "machine" / f"{name}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    compilation_cache._prune(tmp_path)
    assert {path.name for path in tmp_path.glob("*/*")} == {"new-cache", "middle-cache"}
