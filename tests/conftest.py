"""Settings of JAX for every test, and fixtures that several test files share."""

import importlib.metadata
import os

import pytest


def pytest_configure(config):
    """Sets JAX's environment before a test file imports it; child processes inherit."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Broadcasting over a missing axis hides shape errors: vectors never meet matrices.
    os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
    # Most of the time of these tests is compilation; half of that, XLA's optimizations,
    # and of the rest, more than half is what it emits for fused loops. A tenth of what
    # is left is dividing a program for threads, of which a worker has one.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # XLA ends a process that is given a flag of other versions.
        for name, value in (
            ("--xla_cpu_use_fusion_emitters", "false"),
            ("--xla_cpu_parallel_codegen_split_count", "1"),
        ):
            flags = os.environ.get("XLA_FLAGS", "")
            if name not in flags:
                os.environ["XLA_FLAGS"] = f"{flags} {name}={value}".lstrip()
    cache = getattr(config, "cache", None)  # absent under `-p no:cacheprovider`
    if cache is None:
        # Programs would keep what they compile in the user's folder.
        os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
    else:
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
    from tiny import get_config

    return get_config()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_config):
    """Folder of an uninterrupted run of `tiny_config`; look, do not touch."""
    import fcntl

    from hapre_jax import train

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers, of which one trains
    workdir = folder / "finished" / "run"
    workdir.parent.mkdir(exist_ok=True)
    with open(workdir.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # If it is finished, this reads its results.
        train.train_and_evaluate(tiny_config, workdir)
    return workdir


@pytest.fixture
def write_run():
    """Writes what scores are read from into the folder of a run that never was.

    Its test films are of five patients, each with two of class a and two of class b;
    with `misses` one a of each is called b. So no resampling of patients changes a
    score: the macro-F1 of the answers is 1, with misses (2/3 + 4/5) / 2 = 11/15.
    """
    import json

    import numpy as np

    from hapre_jax import config as config_lib
    from hapre_jax import predictions

    def write(
        folder,
        f1,
        *,
        misses=False,
        iou=None,
        minutes=1,
        tested="",
        films=None,
        whole=False,
        **scores,
    ):
        results, answers = folder / "results.json", folder / "predictions.csv"
        if tested:
            results = folder / "on" / f"{tested}.json"
            answers = folder / "on" / f"{tested}_predictions.csv"
        names = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
        test = {"n": 20, **dict.fromkeys(names, f1), **scores}
        test["key_area"] = None if iou is None else {"lung_iou": iou}
        results.parent.mkdir(parents=True, exist_ok=True)
        written = {"test": test, "seconds": 60 * minutes}
        if tested:
            config = config_lib.override_all(config_lib.Config(), films or {})
            written["config"] = config_lib.to_dict(config)
            written["films"] = "all" if whole else "test split"
        results.write_text(json.dumps(written))
        said = [0, int(misses), 1, 1] * 5
        table = predictions.Predictions(
            names=tuple(f"film-{i}" for i in range(20)),
            groups=tuple(f"patient-{i // 4}" for i in range(20)),
            views=("",) * 20,
            classes=("a", "b"),
            labels=np.array([0, 0, 1, 1] * 5, np.int32),
            probabilities=np.eye(2, dtype=np.float32)[said],
        )
        predictions.write(answers, table)

    return write
