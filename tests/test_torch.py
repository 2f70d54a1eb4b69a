"""Our networks against torchvision's, with the same random weights."""

import functools
import importlib
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import convert, nets, pretrained
from hapre_jax.errors import UserError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "densenet169",
    "vgg16",
    "vgg19",
)
BATCH, CLASSES = 2, 3


@pytest.fixture(scope="module")
def torchvision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision looks for image libraries
        try:
            import torchvision
        except RuntimeError:
            # A CPU build of PyTorch beside a torchvision built for CUDA, which then
            # lacks two operators that it refers to. What is defined lives as long as
            # the library object.
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(
                    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            torchvision = importlib.import_module("torchvision")
            torchvision.operators = library
        return torchvision


@pytest.fixture(scope="module", params=BACKBONES)
def pair(request, torchvision):
    """A torchvision model with random variables, and ours with the same."""
    torch.manual_seed(0)
    name = request.param
    model = getattr(torchvision.models, name)(num_classes=CLASSES)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    net = nets.NETS[name](num_classes=CLASSES)
    loaded = _convert(model, name)
    yield name, model, net, {"params": loaded.params, **loaded.model_state}
    jax.clear_caches()


def _convert(model, name):
    # Copied, since training changes a model's statistics in place.
    tensors = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    init = functools.partial(nets.NETS[name](num_classes=CLASSES).init, train=False)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    params = shapes.pop("params")
    loaded = pretrained.convert(tensors, name, params, shapes)
    assert loaded.notes == ()
    return loaded


def _stages(name, model):
    """The modules whose output is a stage's feature."""
    if name.startswith("resnet"):
        return [getattr(model, f"layer{i}") for i in (1, 2, 3, 4)]
    features = model.features
    if name.startswith("densenet"):
        return [
            *(getattr(features, f"denseblock{i}") for i in (1, 2, 3)),
            features.norm5,
        ]
    pools = (i for i, m in enumerate(features) if isinstance(m, torch.nn.MaxPool2d))
    return [features[i - 1] for i in pools]


def _torch_output(name, model, image):
    """Logits and stage features in our order of axes."""
    features = []

    def keep(module, inputs, output):
        # The function after norm5 rectifies in place.
        is_last = name.startswith("densenet") and module is model.features.norm5
        kept = torch.relu(output) if is_last else output
        features.append(kept.detach().numpy().transpose(0, 2, 3, 1))

    hooks = [module.register_forward_hook(keep) for module in _stages(name, model)]
    with torch.no_grad():
        logits = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy()
    for hook in hooks:
        hook.remove()
    return logits, features


def assert_close(ours, theirs, limit=1e-4):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
    assert np.abs(ours - theirs).max() <= limit * np.abs(theirs).max()


@pytest.mark.parametrize("size", [(224, 224), (97, 131)])
def test_inference_equals_torchvision(pair, size):
    name, model, net, variables = pair
    image = np.random.default_rng(1).normal(size=(BATCH, *size, 3)).astype(np.float32)
    model.eval()
    logits, features = _torch_output(name, model, image)
    output = jax.jit(functools.partial(net.apply, train=False))(variables, image)
    assert_close(output.logits, logits)
    assert len(features) == len(output.features)
    for ours, theirs in zip(output.features.values(), features, strict=True):
        assert_close(ours, theirs)


def test_training_equals_torchvision(pair):
    name, model, net, variables = pair
    if name.startswith("vgg"):
        pytest.skip("VGG has no statistics, and dropout draws other numbers")
    # Large enough that the last statistics are of more than a handful of values.
    image = np.random.default_rng(2).normal(size=(4, 128, 128, 3)).astype(np.float32)
    # In double precision: over 50 layers, statistics of few values lift the largest
    # rounding error in float32 to 2e-4 in PyTorch and to 1e-4 here.
    model.double().train()
    logits, features = _torch_output(name, model, image.astype(np.float64))
    apply = functools.partial(net.apply, train=True, mutable=["batch_stats"])
    output, changed = jax.jit(apply)(variables, image)
    assert_close(output.logits, logits, limit=5e-4)
    for ours, theirs in zip(output.features.values(), features, strict=True):
        assert_close(ours, theirs, limit=5e-4)
    expected = _convert(model, name).model_state
    close = functools.partial(assert_close, limit=5e-4)
    jax.tree.map(close, changed, expected)


def test_checkpoint_is_read_and_converted(tmp_path, torchvision):
    model = torchvision.models.resnet18(num_classes=CLASSES)
    wrapped = {f"module.{name}": x for name, x in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "in.pth")
    assert (
        convert.main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 0
    )
    read = pretrained.read(tmp_path / "out.safetensors")
    assert set(read) == set(model.state_dict())
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(read[name], value.numpy())


def test_checkpoint_of_parameters_is_read(tmp_path):
    """As `state_dict(keep_vars=True)` has them, which ask for gradients."""
    model = torch.nn.BatchNorm1d(3)
    torch.save(model.state_dict(keep_vars=True), tmp_path / "in.pth")
    found = pretrained.read(tmp_path / "in.pth")
    expected = {"weight": [1] * 3, "bias": [0] * 3}
    expected |= {"running_mean": [0] * 3, "running_var": [1] * 3}
    expected["num_batches_tracked"] = 0
    assert {name: value.tolist() for name, value in found.items()} == expected


class Hostile:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("pack", ["torch", "pickle"])
def test_pickled_code_is_not_executed(tmp_path, pack):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"conv1.weight": Hostile(trace)}
    if pack == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="nothing in it was executed") as error:
        pretrained.read(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "holds no weights by name"),
        ({"lr": 0.1}, "holds 'lr', which is no tensor"),
    ],
)
def test_checkpoint_without_weights(tmp_path, content, sentence):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=sentence):
        pretrained.read(tmp_path / "weights.pth")


def test_damaged_checkpoint(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 half a zip")
    with pytest.raises(UserError, match="is no file of plain PyTorch weights"):
        pretrained.read(tmp_path / "weights.pth")
