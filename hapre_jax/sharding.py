"""Many devices: the mesh of a run, and what of it lies where.

Batches are split over the axis "data", and everything that is learned has a copy on
each device; or, over the axis "model", a part of the channels. XLA does the rest: the
step is the same program, its statistics of a batch are those of the whole batch.
"""

import contextlib
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hapre_jax import run_folder
from hapre_jax.config import TrainConfig
from hapre_jax.errors import UserError


def make_mesh(train: TrainConfig) -> Mesh:
    """The devices of a run as a grid, (data, model).

    Raises:
      UserError: there are fewer devices than asked for, or they cannot share a batch.
    """
    found = jax.devices()
    count = len(found) if train.distributed else train.devices or len(found)
    if count > len(found):
        raise UserError(
            f"train.devices is {count}, but there are only {len(found)} here"
        )
    if count % train.model_devices:
        raise UserError(
            f"train.model_devices is {train.model_devices}, but must divide the "
            f"{count} devices of the run"
        )
    shares = count // train.model_devices
    if train.batch_size % shares:
        raise UserError(
            f"train.batch_size is {train.batch_size}, but must be a multiple of the "
            f"{shares} devices that share it"
        )
    return jax.make_mesh(
        (shares, train.model_devices),
        ("data", "model"),
        # Not Explicit, JAX's default, which Flax's layers do not know.
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=found[:count],
    )


def join(train: TrainConfig) -> None:
    """Joins the processes of a run; nothing may have been computed before.

    Raises:
      UserError: nothing says which processes these are.
    """
    if not train.distributed:
        return
    # It would keep SIGTERM from this process; see `interrupts`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "train.distributed is true, but the processes of the run cannot be found: "
            f"start them with srun, mpirun or Kubernetes ({error})"
        ) from error


def largest(number: int) -> int:
    """The maximum over all processes, each of which must ask at the same step."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


@contextlib.contextmanager
def one_writer(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder that this process works in, of a run on a file system of all.

    All processes do the same, but only the first one's files are the run's: the others
    have copies, which are thrown away. Checkpoints, which they write together, are in
    the run's folder for all.
    """
    if jax.process_count() == 1:
        yield workdir
        return
    with tempfile.TemporaryDirectory() as scratch:
        mine = workdir
        if jax.process_index():
            mine = pathlib.Path(scratch, "run")
            if workdir.exists():
                ignored = shutil.ignore_patterns("checkpoints")
                shutil.copytree(workdir, mine, ignore=ignored)
            for part in ("", run_folder.PLAIN):
                (mine / part).mkdir(parents=True, exist_ok=True)
                whole = (workdir / part / "checkpoints").absolute()
                (mine / part / "checkpoints").symlink_to(whole)
        multihost_utils.sync_global_devices("the run's folder is copied")
        yield mine
        multihost_utils.sync_global_devices("the run is done")


def of_state(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Where an array of a state lies: whole everywhere, or its last axis in parts."""
    parts, shape = mesh.shape["model"], np.shape(leaf)
    if parts > 1 and len(shape) > 1 and shape[-1] % parts == 0:
        spec = PartitionSpec(*(None,) * (len(shape) - 1), "model")
        return NamedSharding(mesh, spec)
    return NamedSharding(mesh, PartitionSpec())


def shapes(state: Any, mesh: Mesh) -> Any:
    """Shapes of a state, and where `put_state` would put it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of_state(x, mesh)),
        state,
    )


def put_state(tree: Any, mesh: Mesh) -> Any:
    """A state, the same in every process, on the devices of a mesh."""
    shardings = jax.tree.map(functools.partial(of_state, mesh=mesh), tree)
    if jax.process_count() > 1:
        return jax.tree.map(_put_part, tree, shardings)
    return jax.device_put(tree, shardings)


def _put_part(leaf, sharding):
    """Puts what this process's devices hold of an array that every process has."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # JAX would copy an array that is on a device to those of the other processes, which
    # few backends can.
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def gather(tree: Any, mesh: Mesh) -> Any:
    """A state of a mesh, whole, on one device of this process."""
    if mesh.size == 1:
        return tree
    whole = jax.jit(functools.partial(everywhere, mesh=mesh))(tree)
    return jax.device_put(jax.device_get(whole), jax.local_devices()[0])


def keep_state(tree: Any, mesh: Mesh | None) -> Any:
    """Inside of a jitted function: has the result lie as `put_state` puts it."""
    if mesh is None or mesh.size == 1:
        return tree
    shardings = jax.tree.map(functools.partial(of_state, mesh=mesh), tree)
    return jax.lax.with_sharding_constraint(tree, shardings)


def everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """Inside of a jitted function: has each device know the whole result."""
    if mesh is None or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """This process's part of a batch, see `share`, as a part of the whole one."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    _, parts = share(mesh)

    def put(part):
        shape = (parts * len(part), *part.shape[1:])
        return jax.make_array_from_process_local_data(sharding, part, shape)

    return jax.tree.map(put, batch)


def share(mesh: Mesh) -> tuple[int, int]:
    """Which part of each batch this process reads, and of how many.

    Processes whose devices have parts of the same layers read the same images.

    Raises:
      UserError: the devices of a process are not all of one part, or of several whole
        ones that follow each other.
    """
    mine = [
        row
        for row, devices in enumerate(mesh.devices)
        if any(of.process_index == jax.process_index() for of in devices)
    ]
    count, total = len(mine), len(mesh.devices)
    is_block = mine == list(range(mine[0], mine[0] + count))
    if not is_block or mine[0] % count or total % count:
        raise UserError(
            f"train.model_devices is {mesh.shape['model']}, but this process has "
            f"devices for the parts {mine} of a batch in {total}: it must have whole "
            "ones, as many as the others"
        )
    return mine[0] // count, total // count
