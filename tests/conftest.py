"""Settings of JAX for every test, and fixtures that several test files share."""

import os

import pytest


def pytest_configure(config):
    """Sets JAX's environment before a test file imports it; child processes inherit."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Broadcasting over a missing axis hides shape errors: vectors never meet matrices.
    os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
    # Most of the time of these tests is compilation; half of that, XLA's optimizations.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    cache = getattr(config, "cache", None)  # absent under `-p no:cacheprovider`
    if cache is not None:
        # The second run of the tests, and their child processes, reuse the rest.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture
def strict_dtypes():
    """Raises where two dtypes meet, so that no float64 or integer slips in."""
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def float64():
    """Double precision, which finite differences need."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["jit", "eager"])
def variant(request):
    """`jax.jit`, or what leaves a function as it is."""
    import jax

    return jax.jit if request.param == "jit" else lambda function: function


@pytest.fixture(scope="session")
def tiny_config():
    """The default experiment, shrunk: HAPre-KRS beside the plain classifier."""
    from hapre_jax import config

    return config.tiny(config.load("configs/phantom.py"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_config):
    """Folder of an uninterrupted run of `tiny_config`; look, do not touch."""
    from hapre_jax import train

    workdir = tmp_path_factory.mktemp("finished") / "run"
    train.train_and_evaluate(tiny_config, workdir)
    return workdir
