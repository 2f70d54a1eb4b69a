"""Bundles: against the run that they were made of, and in processes without it."""

import dataclasses
import json
import struct
import subprocess
import sys
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from hapre_jax import config as config_lib
from hapre_jax import export, predict, run_folder, train_state
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS
from hapre_jax.serving import inference, standalone

NAMES = [
    "README.md",
    "answer.py",
    "bundle.json",
    "config.json",
    "heat.stablehlo",
    "model.onnx",
    "model.stablehlo",
    "weights.safetensors",
]


@pytest.fixture(scope="module")
def bundle(finished_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "bundle"
    assert export.main([str(finished_run), "--out", str(out), "--onnx"]) == 0
    return out


@pytest.fixture(scope="module")
def squares(tiny_config):
    side = tiny_config.data.image_size
    return np.random.default_rng(0).integers(0, 256, (32, side, side, 1), np.uint8)


def test_a_bundle_answers_as_its_run(bundle, finished_run, squares):
    assert sorted(file.name for file in bundle.iterdir()) == NAMES
    assert [file.name for file in bundle.parent.iterdir()] == ["bundle"]
    run, model = inference.load(finished_run), inference.load(bundle)
    assert model.classes == run.classes and model.typical == run.typical
    assert model.temperature == run.temperature > 0
    expected, found = run.predict(squares), model.predict(squares)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.area, expected.area, atol=1e-5)
    (heat, _), (found_heat, answered) = run.explain(squares), model.explain(squares)
    np.testing.assert_allclose(found_heat, heat, atol=1e-4)
    np.testing.assert_allclose(answered.probabilities, expected.probabilities, 0, 1e-5)


def test_the_onnx_model_answers_as_the_run(bundle, finished_run, squares):
    session = onnxruntime.InferenceSession(
        bundle / "model.onnx", providers=["CPUExecutionProvider"]
    )
    expected = inference.load(finished_run).predict(squares)
    area, shares = session.run(["key_area", "probabilities"], {"image": squares})
    np.testing.assert_allclose(shares, expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(area, expected.area, atol=1e-4)


def test_the_program_of_a_bundle_needs_jax_and_numpy_alone(
    bundle, finished_run, squares, tmp_path
):
    np.save(tmp_path / "squares.npy", squares)
    # Not the repository's folder, nor what it is installed as: jax and numpy are.
    program = f"""
import sys
import zlib
sys.path.insert(0, {str(bundle)!r})
import jax
import jax.numpy as jnp
import numpy as np
import answer
found = answer.load({str(bundle)!r})(np.load({str(tmp_path / "squares.npy")!r}))
np.savez({str(tmp_path / "found.npz")!r}, **found)
for name in ("hapre_jax", "flax", "optax", "orbax", "safetensors", "PIL"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    expected = inference.load(finished_run).predict(squares)
    np.testing.assert_allclose(
        found["probabilities"], expected.probabilities, atol=1e-5
    )
    np.testing.assert_allclose(found["key_area"], expected.area, atol=1e-5)


@pytest.mark.parametrize("geometry", ["letterbox", "squash", "cover"])
def test_the_program_reads_films_as_the_training_did(tmp_path, geometry):
    from hapre_jax.data import images

    pixels = np.random.default_rng(0).integers(0, 256, (30, 47), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    film = Image.fromarray(pixels)
    np.testing.assert_array_equal(
        standalone.square(tmp_path / "film.png", 16, geometry),
        images.fit(film, size=16, geometry=geometry),
    )


def test_the_program_reads_16_bits_or_refuses(tmp_path):
    from hapre_jax.data import images

    assert standalone.MIN_SIDE == images.MIN_SIDE
    film = np.array([[0, 65_535], [257, 25_700]], np.uint16).repeat(8, 0).repeat(8, 1)
    Image.fromarray(film).save(tmp_path / "film.png")
    read = standalone.square(tmp_path / "film.png", 16, "squash")
    np.testing.assert_array_equal(read[::8, ::8, 0], [[0, 255], [1, 100]])
    Image.fromarray(film // 100).save(tmp_path / "film.png")
    with pytest.raises(ValueError, match=r"^has gray levels up to 655"):
        standalone.square(tmp_path / "film.png", 16, "squash")
    Image.fromarray(film[:8]).save(tmp_path / "film.png")
    with pytest.raises(ValueError, match=r"^has 16 x 8 pixels"):
        standalone.square(tmp_path / "film.png", 16, "squash")


def _png(levels):
    """A PNG file of 16-bit `u16[H, W, C]`, which Pillow cannot write."""
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]  # gray, alpha, color, both
    lines = [b"\0" + row.astype(">u2").tobytes() for row in levels]

    def chunk(name, content):
        numbers = len(content), zlib.crc32(name + content)
        length, code = (struct.pack(">I", number) for number in numbers)
        return length + name + content + code

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(lines)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("has_marker", [False, True])
def test_the_program_takes_what_the_library_takes(channels, bits, has_marker, tmp_path):
    """And refuses a detector's 12 bits in 16, which would be nearly black."""
    from hapre_jax.data import images

    levels = np.random.default_rng(0).integers(0, 2**bits, (40, 40, channels))
    if has_marker:
        levels[:3, :4] = 65_535  # 12 of 1,600 pixels
    file = tmp_path / "film.png"
    file.write_bytes(_png(levels.astype(np.uint16)))
    if bits == 12:
        with pytest.raises(UserError, match="scale"):
            images.open_gray(file.read_bytes(), name="film.png")
        with pytest.raises(ValueError, match="scale the film's to 0..65535"):
            standalone.square(file, 16, "squash")
    else:
        film = images.open_gray(file.read_bytes(), name="film.png")
        np.testing.assert_array_equal(
            standalone.square(file, 16, "squash"),
            images.fit(film, size=16, geometry="squash"),
        )


def test_the_program_answers_a_film(bundle, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    command = [sys.executable, str(bundle / "answer.py"), "film.png"]
    said = subprocess.run(
        command, check=True, cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert said.startswith("film.png: normal 0.") and "; key area [" in said
    # Others are answered where one cannot be read, or needs more care.
    (tmp_path / "bad.png").write_bytes((tmp_path / "film.png").read_bytes()[:300])
    Image.fromarray(pixels).save(tmp_path / "film.tif")
    failed = subprocess.run(
        [*command[:2], "bad.png", "film.tif", "gone.png", "film.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (failed.returncode, failed.stdout) == (1, said)
    assert [line.partition(":")[0] for line in failed.stderr.splitlines()] == [
        "bad.png cannot be read",
        "film.tif cannot be read",
        "gone.png cannot be read",
    ]
    with pytest.raises(SystemExit, match=r"^usage: python answer\.py FILM\.\.\.$"):
        standalone.main([])


def test_predict_takes_a_bundle(bundle, finished_run, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 80), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    lines = []
    for name, model in (("bundle", bundle), ("run", finished_run)):
        out = tmp_path / name
        flags = ["--out", str(out), "--heatmaps", "--overlays"]
        assert predict.main([str(model), str(tmp_path / "film.png"), *flags]) == 0
        lines.append(json.loads((out / "predictions.jsonl").read_text()))
        with Image.open(out / "heatmaps" / "film.png") as picture:
            assert picture.size == (512, 512) and picture.mode == "RGB"
    first, second = lines
    assert first["answer"] == second["answer"]
    assert first["calibrated"] == pytest.approx(second["calibrated"], abs=1e-5)
    assert 1 / 3 < first["calibrated"] <= 1
    assert first["key_area"] == pytest.approx(second["key_area"], abs=0.11)


def test_the_card_says_what_the_model_is(bundle, finished_run):
    card = (bundle / "README.md").read_text()
    results = run_folder.read_results(finished_run)
    assert "**Not for clinical use.**" in card and "no real films" in card
    assert f"| macro F1 | {results['test']['macro_f1']:.3f} |" in card
    assert f"p^(1/{results['temperature']:.4g})" in card
    assert "normal, bacterial, viral" in card and "model.onnx" in card
    session = onnxruntime.InferenceSession(
        bundle / "model.onnx", providers=["CPUExecutionProvider"]
    )
    outputs = ", ".join(f"`{output.name}`" for output in session.get_outputs())
    assert f"by name, they are sorted: {outputs}." in card


def test_a_bundle_does_not_say_where_the_films_lay(tiny_config):
    paths = {
        "data.root": "/home/ward/films",
        "task.pretrained": "/home/ward/net.pth",
        "policy.pretrained": "/home/ward/trunk.pth",
        "baseline.stage_one_pretrained": "/home/ward/one.pth",
    }
    # Pretrained weights come with statistics.
    norms = {"policy.norm": "batch", "task.norm": "batch"}
    config = config_lib.override_all(tiny_config, norms | paths)
    assert export._without_paths(config) == config_lib.override_all(tiny_config, norms)


def test_what_cannot_work_is_refused_in_one_sentence(
    bundle, finished_run, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match="exists already"):
        export.main([str(finished_run), "--out", str(bundle)])
    with pytest.raises(UserError, match=r"has no results\.json"):
        export.main([str(tmp_path), "--out", str(tmp_path / "out")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hapre_jax\[onnx\]'"):
        export.main([str(finished_run), "--out", str(tmp_path / "out"), "--onnx"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.stablehlo", "weights.safetensors"])
def test_a_damaged_bundle_is_refused_by_name(bundle, tmp_path, name):
    for file in bundle.iterdir():
        content = file.read_bytes()
        if file.name == name:
            content = content[: len(content) // 2]
        (tmp_path / file.name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        inference.load(tmp_path)


def test_weights_of_another_model_are_refused(bundle, tmp_path):
    import safetensors.numpy

    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = safetensors.numpy.load_file(tmp_path / "weights.safetensors")
    weights["params.task.head.bias"] = np.zeros(7, np.float32)
    safetensors.numpy.save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged, or of"):
        inference.load(tmp_path)
    about = json.loads((tmp_path / "bundle.json").read_text())
    del about["sha256"]  # as older versions wrote it
    (tmp_path / "bundle.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="does not fit the files beside it"):
        inference.load(tmp_path)


def test_one_changed_weight_is_noticed(bundle, tmp_path):
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "heat.stablehlo").unlink()  # may be left out
    inference.load(tmp_path)
    content = bytearray((tmp_path / "weights.safetensors").read_bytes())
    content[-2] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged, or of"):
        inference.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["a"]},
        {"temperature": -1},
        {"typical": {}},
        {"sha256": None},
        {"typical": {"mean": [0.0], "correlation": 0.1, "contrast": 0.1}},
    ],
)
def test_a_changed_description_of_a_bundle_is_refused(bundle, tmp_path, changes):
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    about = json.loads((tmp_path / "bundle.json").read_text()) | changes
    (tmp_path / "bundle.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"bundle\.json is damaged; export it anew"):
        inference.load(tmp_path)


def test_a_bundle_of_other_classes_is_refused(bundle, tmp_path):
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    about = json.loads((tmp_path / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps(about | {"classes": ["a", "b"]}))
    with pytest.raises(UserError, match="does not fit the files beside it"):
        inference.load(tmp_path)


@pytest.mark.parametrize("operation", ["gamma", "rotation", "zoom", "key_area+gamma"])
def test_every_operation_can_be_exported(tiny_config, operation):
    """Traced for a batch of any size, without which there is no graph."""
    policy = dataclasses.replace(tiny_config.policy, operation=operation)
    config = dataclasses.replace(tiny_config, policy=policy)
    method, side = METHODS["hapre"](config, 3), config.data.image_size
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, side, side, 1), np.float32)
    average = train_state.blank(method, config).average

    def predict(average, image):
        return method.predict(*average, {"image": image})

    found = jax.eval_shape(predict, average, image)
    assert found.probabilities.shape == (batch, 3)


def test_weights_keep_their_places_whatever_their_names(tiny_config, tmp_path):
    """Leaves of lists and named tuples do not stand in the order of their names."""

    class Pair(NamedTuple):
        second: np.ndarray
        first: np.ndarray

    pair = Pair(np.float32(100), np.float32(1000))
    variables = {"list": [np.float32(n) for n in range(12)], "pair": pair}, {}

    def function(variables, pixels):
        (params, _), count = variables, pixels.shape[0]
        told = jnp.stack([*params["list"], *params["pair"]])
        return {"told": jnp.broadcast_to(told, (count, 14))}

    file = tmp_path / "graph"
    assert export._write_graph(function, variables, tiny_config, file) == 0
    graph = jax.export.deserialize(bytearray(file.read_bytes()))
    side = tiny_config.data.image_size
    film = np.zeros((1, side, side, 1), np.uint8)
    found = graph.call(inference.flatten(variables), film)["told"]
    np.testing.assert_array_equal(found, [[*range(12), 100, 1000]])
