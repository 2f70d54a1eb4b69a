import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from hapre_jax import config, convert, nets, pretrained, train, train_state
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS


def resnet18_tensors(classes=1000):
    """What torchvision's resnet18().state_dict() holds, written from its definition."""
    rng = np.random.default_rng(0)
    tensors = {}

    def put(name, *shape):
        tensors[name] = rng.normal(0, 0.1, shape).astype(np.float32)

    def norm(name, width):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            put(f"{name}.{leaf}", width)
        tensors[f"{name}.num_batches_tracked"] = np.array(7)

    put("conv1.weight", 64, 3, 7, 7)
    norm("bn1", 64)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            put(f"{name}.conv1.weight", width, before, 3, 3)
            norm(f"{name}.bn1", width)
            put(f"{name}.conv2.weight", width, width, 3, 3)
            norm(f"{name}.bn2", width)
            if before != width:
                put(f"{name}.downsample.0.weight", width, before, 1, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    put("fc.weight", classes, 512)
    put("fc.bias", classes)
    return tensors


@pytest.fixture(scope="module")
def tensors():
    return resnet18_tensors()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


def shapes(net="resnet18", classes=3, channels=3, norm="batch"):
    """Parameters and statistics of a network, as zeros that take no time."""
    network = nets.NETS[net](num_classes=classes, norm=norm)
    image = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    init = functools.partial(network.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), image)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables)
    params = zeros.pop("params")
    return params, zeros


def test_each_tensor_lands_in_its_place(tensors, weights_file):
    loaded = pretrained.load(weights_file, "resnet18", *shapes(classes=1000))
    params, stats = loaded.params, loaded.model_state["batch_stats"]
    np.testing.assert_array_equal(
        params["stage3_block1"]["downsample_conv"]["kernel"][0, 0],
        tensors["layer3.0.downsample.0.weight"][:, :, 0, 0].T,
    )
    np.testing.assert_array_equal(
        params["stem_conv"]["kernel"][2, 3], tensors["conv1.weight"][:, :, 2, 3].T
    )
    norm = params["stage4_block2"]["norm2"]["BatchNorm"]
    np.testing.assert_array_equal(norm["scale"], tensors["layer4.1.bn2.weight"])
    np.testing.assert_array_equal(norm["bias"], tensors["layer4.1.bn2.bias"])
    norm = stats["stage1_block1"]["norm1"]["BatchNorm"]
    np.testing.assert_array_equal(norm["mean"], tensors["layer1.0.bn1.running_mean"])
    np.testing.assert_array_equal(norm["var"], tensors["layer1.0.bn1.running_var"])
    np.testing.assert_array_equal(params["head"]["kernel"].T, tensors["fc.weight"])
    assert loaded.notes == ()


def test_stem_is_folded_for_gray_images(tensors):
    loaded = pretrained.convert(tensors, "resnet18", *shapes(channels=1))
    kernel = loaded.params["stem_conv"]["kernel"]
    assert kernel.shape == (7, 7, 1, 64)
    expected = tensors["conv1.weight"].sum(1).transpose(1, 2, 0)
    np.testing.assert_allclose(kernel[:, :, 0], expected, atol=1e-6)


def test_head_of_other_classes_is_left_out_and_said(tensors):
    params, stats = shapes(classes=3)
    params["head"]["bias"] += 5
    loaded = pretrained.convert(tensors, "resnet18", params, stats, source="w.pth")
    assert loaded.params["head"]["bias"].tolist() == [5, 5, 5]
    assert loaded.notes == ("w.pth: its head of 1000 classes is left out",)


@pytest.mark.parametrize("attention", ["cbam", "danet"])
def test_attention_starts_new_and_says_so(tensors, attention):
    net = f"resnet18+{attention}"
    loaded = pretrained.convert(tensors, net, *shapes(net), source="w.pth")
    assert loaded.notes[-1] == (
        f"w.pth has no weights for {net}'s attention, which starts new"
    )
    assert loaded.params["stage1_block1"]["conv1"]["kernel"].any()


def test_trunk_takes_no_head(tensors):
    loaded = pretrained.convert(tensors, "resnet18", *shapes(classes=0))
    assert "head" not in loaded.params and loaded.notes == ()


def test_old_names_of_densenet_are_known():
    old = "features.denseblock2.denselayer12.norm.1.running_mean"
    new = "features.denseblock2.denselayer12.norm1.running_mean"
    assert pretrained._modern(old) == new
    assert pretrained._modern(new) == new
    assert pretrained._modern("features.norm5.weight") == "features.norm5.weight"


def test_missing_tensor_is_named_with_its_shape(tensors):
    less = {k: v for k, v in tensors.items() if k != "layer2.0.conv1.weight"}
    with pytest.raises(UserError) as error:
        pretrained.convert(less, "resnet18", *shapes(), source="w.pth")
    assert str(error.value) == (
        "w.pth has no tensor 'layer2.0.conv1.weight', which resnet18 expects with "
        "shape [128, 64, 3, 3]"
    )


def test_other_architecture_is_named(tensors):
    with pytest.raises(UserError, match="'layer1.0.conv1.weight' with shape"):
        pretrained.convert(tensors, "resnet50", *shapes("resnet50"))
    with pytest.raises(UserError, match="no tensor 'layer1.2.conv1.weight', which res"):
        pretrained.convert(tensors, "resnet34", *shapes("resnet34"))
    with pytest.raises(UserError, match="no tensor 'features.denseblock1.denselayer1"):
        pretrained.convert(tensors, "densenet121", *shapes("densenet121"))
    more = {**tensors, "layer1.2.conv1.weight": np.zeros((64, 64, 3, 3))}
    with pytest.raises(UserError, match="'layer1.2.conv1.weight', which resnet18 has"):
        pretrained.convert(more, "resnet18", *shapes())
    with pytest.raises(UserError, match="no torchvision weights for resnet8"):
        pretrained.convert(tensors, "resnet8", *shapes("resnet8"))


def test_values_that_are_not_finite_are_refused(tensors):
    bad = tensors["bn1.bias"].copy()
    bad[3] = np.nan
    with pytest.raises(UserError, match="'bn1.bias' with values that are not finite"):
        pretrained.convert({**tensors, "bn1.bias": bad}, "resnet18", *shapes())


def _header(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a safetensors file",
        struct.pack("<Q", 2**60) + b"{}",
        # A tensor that claims more bytes than the file has.
        _header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    ],
)
def test_damaged_file_gets_one_sentence(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no readable safetensors file"):
        pretrained.read(path)


def test_truncated_file_gets_one_sentence(tmp_path, weights_file):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is no readable safetensors file"):
        pretrained.read(path)


def test_unknown_files(tmp_path):
    with pytest.raises(UserError, match="there is no file of weights"):
        pretrained.read(tmp_path / "missing.safetensors")
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"must end in \.safetensors, \.pth or \.pt"):
        pretrained.read(tmp_path / "weights.h5")
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        convert.convert(tmp_path / "weights.h5", tmp_path / "out.npz")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_converted_tensors_are_float32_and_anyone_may_read_them(tmp_path, kind):
    weights = np.array([[1, 2, 3], [4, 5, 6.5]]).astype(jnp.dtype(kind))
    stored = {"weight": weights, "count": np.array(7)}
    source, target = (tmp_path / f"{name}.safetensors" for name in ("in", "out"))
    safetensors.numpy.save_file(stored, source)
    assert convert.main([str(source), str(target)]) == 0
    found = safetensors.numpy.load_file(target)
    assert {name: str(value.dtype) for name, value in found.items()} == {
        "weight": "float32",
        "count": "int64",
    }
    assert found["weight"].tolist() == [[1, 2, 3], [4, 5, 6.5]]
    assert found["count"] == 7
    (tmp_path / "usual").touch()
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_that_cannot_be_written_to(tmp_path, weights_file):
    target = tmp_path / "missing" / "out.safetensors"
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        convert.convert(weights_file, target)
    assert not list(tmp_path.iterdir())


def paper_config(weights_file, **task):
    return config.override_all(
        config.Config(),
        {
            "task.net": "resnet18",
            "task.pretrained": str(weights_file),
            "policy.net": "resnet18",
            "policy.norm": "frozen",
            "policy.pretrained": str(weights_file),
            **task,
        },
    )


def test_frozen_statistics_of_no_network_are_said_to_be_none(weights_file):
    settings = paper_config(weights_file, **{"policy.pretrained": ""})
    blank = train_state.blank(METHODS["hapre"](settings, 3), settings)
    found = pretrained.start(settings, blank.params, blank.model_state)
    assert found.notes[1:] == (
        "the norms of network policy are frozen, but there is no policy.pretrained "
        "whose statistics they would keep: nothing is normalized",
    )
    # A VGG has no statistics; those of a batch are not kept.
    settings = paper_config(
        weights_file, **{"task.pretrained": "", "task.net": "vgg16"}
    )
    settings = config.override(settings, "task.norm", "frozen")
    blank = train_state.blank(METHODS["plain"](settings, 3), settings)
    found = pretrained.start(settings, blank.params, blank.model_state)
    assert found.notes == ()


def test_both_networks_and_their_average_start_from_the_file(tensors, weights_file):
    settings = paper_config(weights_file)
    method = METHODS["hapre"](settings, 3)
    blank = train_state.blank(method, settings)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)
    found = pretrained.start(settings, zeros.params, zeros.model_state)
    started = train_state.start_from(zeros, found.params, found.model_state)
    assert found.notes == (f"{weights_file}: its head of 1000 classes is left out",)
    assert jax.tree.structure(started) == jax.tree.structure(blank)
    expected = tensors["conv1.weight"].sum(1).transpose(1, 2, 0)[:, :, None]
    for params, model_state in (
        (started.params, started.model_state),
        started.average,
    ):
        for network, stats in (
            (params["task"], model_state["task"]["batch_stats"]),
            (params["policy"]["trunk"], model_state["policy"]["batch_stats"]["trunk"]),
        ):
            np.testing.assert_allclose(
                network["stem_conv"]["kernel"], expected, atol=1e-6
            )
            np.testing.assert_array_equal(
                stats["stem_norm"]["BatchNorm"]["mean"], tensors["bn1.running_mean"]
            )
        assert not params["policy"]["logits"]["kernel"].any()


def test_bad_weights_are_named_before_films_are_read_and_claim_no_folder(
    tmp_path, tiny_config
):
    films = tmp_path / "films"
    for name in ("a/1.png", "b/1.png"):
        (films / name).parent.mkdir(parents=True)
        (films / name).write_bytes(b"no film either")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"nonsense")
    values = {"data.name": "folder", "data.root": str(films)}
    values["task.pretrained"] = str(path)
    settings = config.override_all(tiny_config, values)
    with pytest.raises(UserError, match="is no readable safetensors file"):
        train.train_and_evaluate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_need_their_statistics():
    with pytest.raises(UserError, match=r"policy\.norm must be batch or frozen"):
        config.PolicyConfig(pretrained="w.safetensors", norm="group")


@pytest.mark.parametrize("net", ["vgg16", "densenet121"])
def test_image_too_small_for_a_network(net):
    with pytest.raises(UserError, match=f"is 31, but {net} halves it five times"):
        config.TaskConfig(net=net, image_size=31)
