"""Weights of torchvision's networks: read, checked, and put where ours have theirs."""

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import nets
from hapre_jax.config import Config
from hapre_jax.errors import UserError

_VGG_POOLED = 7  # places a side of what the classifier sees
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Loaded(NamedTuple):
    """Variables that start from a file."""

    params: dict
    model_state: dict
    notes: tuple[
        str, ...
    ]  # what of the file or the network was left out, a sentence each


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors by name of a `.safetensors` file or a PyTorch checkpoint, in float32.

    Integers, such as counts of batches, stay integers.

    A `.pth` or `.pt` file is a pickle, which could run any program: it is read by
    PyTorch with `weights_only`, which executes nothing. A checkpoint that holds its
    weights under "state_dict" or "model", or was saved by DataParallel, is unwrapped.

    Raises:
      UserError: there is no such file, it is damaged or holds something else than
        tensors, or PyTorch is needed and not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of weights {str(path)!r}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path)
    raise UserError(
        f"file of weights {str(path)!r} must end in .safetensors, .pth or .pt"
    )


def _read_safetensors(path):
    import safetensors
    import safetensors.numpy

    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no readable safetensors file: {error}") from error
    return {
        # Of JAX, which knows bfloat16.
        name: value.astype(np.float32, copy=False)
        if jnp.issubdtype(value.dtype, jnp.floating)
        else value
        for name, value in tensors.items()
    }


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path} needs PyTorch (pip install torch); where it is installed, "
            "python -m hapre_jax.convert makes a .safetensors file that does not"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Whatever a damaged or hostile file makes PyTorch raise, it is the file's fault.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UserError(
            f"{path} is no file of plain PyTorch weights, and nothing in it was "
            f"executed: {reason or type(error).__name__}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no weights by name")
    wrong = [name for name, value in content.items() if not torch.is_tensor(value)]
    if wrong:
        raise UserError(f"{path} holds {wrong[0]!r}, which is no tensor")
    # Of a parameter, which asks for gradients, PyTorch gives no array.
    tensors = {str(name): value.detach() for name, value in content.items()}
    return {
        name.removeprefix("module."): (
            value.float() if value.is_floating_point() else value
        ).numpy()
        for name, value in tensors.items()
    }


def load(path: str | pathlib.Path, net: str, params: dict, model_state: dict) -> Loaded:
    """The variables of a network, started from a file of torchvision's weights.

    Args:
      path: see `read`.
      net: name of the network, as in `nets.NETS`.
      params: its parameters, or their shapes, for what the file has not.
      model_state: its statistics, likewise.

    Returns:
      NumPy arrays in trees of the same structure. A head of another number of classes
      is left as it was, and so is attention, which torchvision does not have. A stem
      for three channels is summed over them where the network takes one, which gives
      the same for a gray image.

    Raises:
      UserError: see `read`; or a tensor is missing, too much, or of another shape.
    """
    return convert(read(path), net, params, model_state, source=str(path))


def convert(
    tensors: Mapping[str, np.ndarray],
    net: str,
    params: dict,
    model_state: dict,
    *,
    source: str = "the file",
) -> Loaded:
    """`load` from tensors that are already read."""
    base = net.partition("+")[0]
    translate = _translator(base)
    if translate is None:
        raise UserError(f"there are no torchvision weights for {net}")
    tensors = {_modern(name): value for name, value in tensors.items()}
    used: set[str] = set()
    kept: list[str] = []

    def take(path, leaf):
        keys = [entry.key for entry in path[1:]]
        name = translate(tuple(keys[1:]))
        if name is None:
            kept.append(".".join(keys[1:-1]))
            return np.asarray(leaf)
        value = tensors.get(name)
        if value is None:
            raise UserError(
                f"{source} has no tensor {name!r}, which {net} expects with shape "
                f"{list(_torch_shape(keys, leaf.shape))}"
            )
        used.add(name)
        is_head = keys[1] == "head"
        converted = _to_flax(keys, np.asarray(value, np.float32), base)
        if converted.ndim == 4 and leaf.shape[2] == 1 and converted.shape[2] == 3:
            converted = converted.sum(2, keepdims=True)
        if converted.shape != leaf.shape:
            if is_head:
                kept.append("head")
                return np.asarray(leaf)
            raise UserError(
                f"{source} has {name!r} with shape {list(value.shape)}, but {net} "
                f"expects {list(_torch_shape(keys, leaf.shape))}"
            )
        if not np.isfinite(converted).all():
            raise UserError(f"{source} has {name!r} with values that are not finite")
        return converted

    # Parameters first: what differs there is told more easily than a statistic.
    new, new_state = jax.tree_util.tree_map_with_path(
        take, ({"params": params}, model_state)
    )
    head = _HEADS[base.rstrip("0123456789")]
    unexpected = [
        name
        for name in tensors
        if name not in used
        and not name.startswith(head)
        and not name.endswith("num_batches_tracked")
        # A trunk has no classifier at all.
        and not ("head" not in params and name.startswith("classifier."))
    ]
    if unexpected:
        raise UserError(f"{source} has a tensor {unexpected[0]!r}, which {net} has not")
    notes = []
    if "head" in kept:
        count = tensors[f"{head}weight"].shape[0]
        notes.append(f"{source}: its head of {count} classes is left out")
    fresh = sorted({name.partition(".")[0] for name in kept} - {"head"})
    if fresh:
        notes.append(f"{source} has no weights for {net}'s attention, which starts new")
    return Loaded(new["params"], new_state, tuple(notes))


def start(config: Config, params: dict, model_state: dict) -> Loaded:
    """The variables of all networks of a `Method`, with the weights of `*.pretrained`.

    Args:
      config: of the run.
      params, model_state: of `Method.init`; or their shapes, to check the files alone.

    Returns:
      Likewise, and sentences on what could not be taken over, or is missing.

    Raises:
      UserError: see `load`.
    """
    params, model_state = dict(params), dict(model_state)
    notes: tuple[str, ...] = ()
    task, policy, baseline = config.task, config.policy, config.baseline
    for name, field, path, net, norm in (
        ("task", "task.pretrained", task.pretrained, task.net, task.norm),
        ("policy", "policy.pretrained", policy.pretrained, policy.net, policy.norm),
        (
            "gate",
            "baseline.stage_one_pretrained",
            baseline.stage_one_pretrained,
            config.stage_one_net,
            task.norm,
        ),
    ):
        if name not in params:
            continue
        if path:
            loaded = _load_trunk(path, net, params[name], model_state[name])
            params[name], model_state[name] = loaded.params, loaded.model_state
            notes += loaded.notes
        elif model_state[name] and norm == "frozen":
            notes += (
                f"the norms of network {name} are frozen, but there is no {field} "
                "whose statistics they would keep: nothing is normalized",
            )
    return Loaded(params, model_state, notes)


def _load_trunk(path, net, params, model_state) -> Loaded:
    """`load`; where a network is built on another one, the file is of the latter."""
    if "trunk" not in params:
        return load(path, net, params, model_state)
    of_trunk = {of: tree["trunk"] for of, tree in model_state.items()}
    loaded = load(path, net, params["trunk"], of_trunk)
    statistics = {
        of: {**tree, "trunk": loaded.model_state[of]}
        for of, tree in model_state.items()
    }
    return Loaded({**params, "trunk": loaded.params}, statistics, loaded.notes)


_HEADS = {"resnet": "fc.", "densenet": "classifier.", "vgg": "classifier.6."}


def _translator(base: str) -> Callable[[tuple[str, ...]], str | None] | None:
    """Torchvision's name of the variable at a path of ours; None for attention."""
    if base in ("resnet18", "resnet34", "resnet50"):
        return _resnet_name
    if base in ("densenet121", "densenet169"):
        return _densenet_name
    if base in ("vgg16", "vgg19"):
        stages = nets.NETS[base](1).stage_sizes
        return lambda keys: _vgg_name(keys, stages)
    return None


def _resnet_name(keys):
    module, *rest = keys
    leaf = _LEAVES[rest[-1]] if rest[-1] in _LEAVES else ""
    top = {"stem_conv": "conv1", "stem_norm": "bn1", "head": "fc"}
    if module in top:
        return f"{top[module]}.{leaf}"
    if module in ("danet", "attention") or rest[0] == "cbam":
        return None
    stage, block = module.removeprefix("stage").split("_block")
    names = {"downsample_conv": "downsample.0", "downsample_norm": "downsample.1"}
    inner = names.get(rest[0], rest[0].replace("norm", "bn"))
    return f"layer{stage}.{int(block) - 1}.{inner}.{leaf}"


def _densenet_name(keys):
    module, *rest = keys
    leaf = _LEAVES[rest[-1]]
    top = {
        "stem_conv": "features.conv0",
        "stem_norm": "features.norm0",
        "final_norm": "features.norm5",
        "head": "classifier",
    }
    if module in top:
        return f"{top[module]}.{leaf}"
    part, _, inner = module.partition("_")
    if part.startswith("transition"):
        return f"features.{part}.{inner}.{leaf}"
    return f"features.dense{part}.dense{inner}.{rest[0]}.{leaf}"


def _vgg_name(keys, stages):
    module, leaf = keys[0], _LEAVES[keys[-1]]
    top = {"hidden1": 0, "hidden2": 3, "head": 6}
    if module in top:
        return f"classifier.{top[module]}.{leaf}"
    stage, index = (int(n) for n in module.removeprefix("stage").split("_conv"))
    # A convolution and its ReLU are two modules, the max-pool of a stage one.
    before = sum(2 * count + 1 for count in stages[: stage - 1])
    return f"features.{before + 2 * (index - 1)}.{leaf}"


def _modern(name):
    """DenseNet's "norm.1" of old files, as of torchvision's own, is now "norm1"."""
    head, layer, tail = name.partition(".denselayer")
    if not layer:
        return name
    for old in ("norm.1.", "norm.2.", "conv.1.", "conv.2."):
        tail = tail.replace(f".{old}", f".{old[:4]}{old[5:]}")
    return head + layer + tail


def _to_flax(keys, value, base):
    """A tensor in Flax's order of axes."""
    if keys[-1] != "kernel" or value.ndim not in (2, 4):
        return value
    if value.ndim == 4:  # output, input, height, width
        return value.transpose(2, 3, 1, 0)
    side = _VGG_POOLED
    if base.startswith("vgg") and keys[1] == "hidden1" and not value.shape[1] % side**2:
        # PyTorch flattens channels first, we places first.
        value = value.reshape(len(value), -1, side, side).transpose(0, 2, 3, 1)
        value = value.reshape(len(value), -1)
    return value.T


def _torch_shape(keys, shape):
    if keys[-1] != "kernel":
        return tuple(shape)
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return (outputs, inputs, height, width)
    return tuple(reversed(shape))
