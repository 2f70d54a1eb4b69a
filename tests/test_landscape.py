import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import FACTS, SCORES, shrink

from hapre_jax import (
    boxes,
    checkpoint,
    json_file,
    landscape,
    optimization,
    reward_landscape,
    run_folder,
    train_state,
)
from hapre_jax import config as config_lib
from hapre_jax.data import pipeline, splits
from hapre_jax.data.dataset import Dataset
from hapre_jax.errors import UserError
from hapre_jax.method import Method, Prediction
from hapre_jax.methods import plain
from hapre_jax.reporting import landscape_sheet

# The averaged weights are used: the others would spoil every number.
STATE = train_state.TrainState(
    step=jnp.array(40),
    params={"bias": jnp.array(1e6)},
    model_state={},
    opt_state=(),
    average=({"bias": jnp.array(0.0)}, {}),
)
KEY_AREA = (0.0, 0.0, 0.5, 0.5)


def _dataset(lung_boxes, *, labels=(0, 1, 1), classes=("normal", "viral")):
    """Uniform films of gray 0.2, 0.4, 0.6 and so on."""
    count = len(labels)
    images = np.zeros((count, 4, 4, 1), np.uint8)
    images[:] = 51 * (1 + np.arange(count).reshape(-1, 1, 1, 1) % 5)
    boxes_of = np.array(lung_boxes, np.float32)
    names = tuple(f"film-{n}" for n in range(count))
    labels = np.array(labels, np.int32)
    return Dataset(images, labels, names, names, classes, boxes_of)


def _method(loss, *, has_policy=True):
    """A method of which nothing is learned: `loss(gray, label, box)` of one image."""

    def predict(params, model_state, batch):
        assert set(batch) <= {"image", "lung_box"}
        count = len(batch["image"])
        probabilities = jnp.zeros((count, 2))
        action = jnp.tile(jnp.array(KEY_AREA), (count, 1)) + params["bias"]
        return Prediction(probabilities, action if has_policy else None)

    def task_losses(params, model_state, batch, actions):
        gray = jnp.mean(batch["image"], axis=(1, 2, 3))
        return params["bias"] + loss(gray, batch["label"], actions.T)

    return Method(None, None, predict, task_losses)


def _linear(gray, label, box):
    """1000 label + 100 gray + 10 width + xmin."""
    _, x_low, _, x_high = box
    return 1000.0 * label + 100 * gray + 10 * (x_high - x_low) + x_low


LUNGS = [(0.4, 0.4, 0.6, 0.6), (0.2, 0.5, 0.4, 0.7), (0.0, 0.25, 0.5, 0.75)]


@pytest.mark.parametrize(
    ("box", "zoom", "shift", "expected"),
    [
        ((0.4, 0.4, 0.6, 0.8), 1.0, 0.0, (0.4, 0.4, 0.6, 0.8)),
        ((0.4, 0.4, 0.6, 0.8), 2.0, 0.0, (0.3, 0.2, 0.7, 1.0)),
        # By a quarter of the width of 0.4 that it has before it is scaled.
        ((0.4, 0.4, 0.6, 0.8), 0.5, -0.25, (0.45, 0.4, 0.55, 0.6)),
        ((0.4, 0.4, 0.6, 0.8), 1.0, 0.5, (0.4, 0.6, 0.6, 1.0)),
        # Would end at 1.1, so it is moved, with the same sides.
        ((0.4, 0.5, 0.6, 0.9), 1.0, 0.5, (0.4, 0.6, 0.6, 1.0)),
        ((0.1, 0.2, 0.7, 0.6), 2.0, 0.0, (0.0, 0.0, 1.0, 0.8)),
    ],
)
def test_place(box, zoom, shift, expected, variant):
    placed = variant(reward_landscape.place)(jnp.array(box), zoom, shift)
    np.testing.assert_allclose(placed, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 3, 64])  # 2 pads the last batch
def test_measure_gives_the_means_of_each_class_and_of_all(batch_size):
    found = reward_landscape.measure(
        _method(_linear),
        STATE,
        _dataset(LUNGS),
        zooms=(1.0, 2.0),
        shifts=(0.0, 0.5),
        batch_size=batch_size,
    )
    # Widths 0.2, 0.2, 0.5 and xmin 0.4, 0.5, 0.25; at zoom 2 the third box is the whole
    # image, shifted or not. Worked by hand, image by image:
    #   zoom 1           22.4   1042.5   1065.25      shifted   22.5   1042.6   1065.5
    #   zoom 2           24.3   1044.4   1070.0       shifted   24.4   1044.5   1070.0
    normal = [[22.4, 22.5], [24.3, 24.4]]
    viral = [[1053.875, 1054.05], [1057.2, 1057.25]]
    both = [[710.05, 710.2], [712.9, 712.9666667]]
    np.testing.assert_allclose(found.losses, [normal, viral, both], rtol=1e-6)
    np.testing.assert_allclose(found.whole, [30.0, 1060.0, 716.6666667], rtol=1e-6)
    np.testing.assert_allclose(found.policy, [25.0, 1055.0, 711.6666667], rtol=1e-6)
    np.testing.assert_array_equal(found.counts, [1, 2, 3])
    assert found.reference == "lungs" and found.classes == ("normal", "viral")
    np.testing.assert_array_equal(found.zooms, np.float32([1, 2]))
    np.testing.assert_array_equal(found.shifts, np.float32([0, 0.5]))


def test_images_of_unknown_lungs_are_left_out_of_every_number():
    lungs = [LUNGS[0], (np.nan,) * 4, LUNGS[2]]
    found = reward_landscape.measure(
        _method(_linear), STATE, _dataset(lungs), zooms=(1.0,), shifts=(0.0,)
    )
    np.testing.assert_array_equal(found.counts, [1, 1, 2])
    np.testing.assert_allclose(
        found.losses.ravel(), [22.4, 1065.25, 543.825], rtol=1e-6
    )
    np.testing.assert_allclose(found.whole, [30.0, 1070.0, 550.0], rtol=1e-6)
    np.testing.assert_allclose(found.policy, [25.0, 1065.0, 545.0], rtol=1e-6)


def test_a_class_without_images_is_nan():
    source = _dataset(LUNGS, classes=("normal", "viral", "other"))
    found = reward_landscape.measure(
        _method(_linear), STATE, source, zooms=(1.0,), shifts=(0.0,)
    )
    assert np.isnan(found.losses[2]).all() and np.isnan(found.whole[2])
    np.testing.assert_allclose(found.losses[3], 710.05, rtol=1e-6)


@pytest.mark.parametrize("lungs", [[], [(np.nan,) * 4] * 3])
def test_boxes_lie_around_the_key_area_where_no_lungs_are_known(lungs):
    found = reward_landscape.measure(
        _method(_linear), STATE, _dataset(lungs), zooms=(1.0, 1.5), shifts=(0.0,)
    )
    assert found.reference == "policy"
    np.testing.assert_array_equal(found.losses[:, 0, 0], found.policy)
    # The key area has sides of 0.5 in a corner: at zoom 1.5 it is 0.75 wide there.
    np.testing.assert_allclose(found.losses[0, 1, 0], 20 + 7.5, rtol=1e-6)


def test_without_lungs_and_policy_there_is_nothing_to_place_boxes_around():
    with pytest.raises(UserError, match="needs known lungs or a policy"):
        reward_landscape.measure(
            _method(_linear, has_policy=False), STATE, _dataset([])
        )


def test_a_method_without_a_policy_has_no_key_area():
    method = _method(_linear, has_policy=False)
    found = reward_landscape.measure(
        method, STATE, _dataset(LUNGS), zooms=(1.0,), shifts=(0.0,)
    )
    assert found.policy is None
    np.testing.assert_allclose(
        found.losses.ravel(), [22.4, 1053.875, 710.05], rtol=1e-6
    )


def test_at_most_max_images_of_all_classes():
    # Every third image is of one class, as in phantoms: a stride would take one class.
    source = _dataset([LUNGS[0]] * 90, labels=[0, 1, 2] * 30, classes=tuple("abc"))
    found, again = (
        reward_landscape.measure(
            _method(_linear),
            STATE,
            source,
            zooms=(1.0,),
            shifts=(0.0,),
            max_images=30,
        )
        for _ in range(2)
    )
    assert found.counts[3] == found.counts[:3].sum() == 30
    assert (found.counts[:3] >= 5).all()
    np.testing.assert_array_equal(found.losses, again.losses)


def _valley(gray, label, box):
    """Lowest for a box 0.5 high whose center lies at x = 0.6."""
    y_low, x_low, y_high, x_high = box
    return (y_high - y_low - 0.5) ** 2 + ((x_low + x_high) / 2 - 0.6) ** 2


def test_of_equal_losses_the_box_that_moved_least_is_the_lowest():
    """Boxes that were moved inside are the whole image, wherever they were shifted."""
    source = _dataset([(0.0, 0.0, 1.0, 1.0)] * 3)
    found = reward_landscape.measure(_method(_valley), STATE, source)
    row, column = reward_landscape.lowest(found)
    same = found.losses[-1, row, column]
    assert (found.losses[-1, -1] == found.losses[-1, -1, 0]).all()
    even = found._replace(losses=np.full_like(found.losses, same))
    row, column = reward_landscape.lowest(even)
    assert (reward_landscape.ZOOMS[row], reward_landscape.SHIFTS[column]) == (1, 0)


def test_the_default_grid_finds_the_minimum():
    source = _dataset([(0.3, 0.3, 0.7, 0.7)] * 3)
    found = reward_landscape.measure(_method(_valley), STATE, source)
    row, column = reward_landscape.lowest(found)
    # Lungs of 0.4 about 0.5: 0.5 is 1.25 times 0.4, and 0.6 a quarter of 0.4 away.
    assert (
        reward_landscape.ZOOMS[row] == 1.25 and reward_landscape.SHIFTS[column] == 0.25
    )
    np.testing.assert_allclose(found.losses[-1, row, column], 0, atol=1e-12)


def _of_all(losses, *, whole=1.0, reference="lungs"):
    """A landscape of zooms 0.5, 1, 2 and shifts -0.5, 0."""
    losses = np.array([losses, losses], np.float32)
    return reward_landscape.Landscape(
        losses=losses,
        zooms=np.array([0.5, 1.0, 2.0], np.float32),
        shifts=np.array([-0.5, 0.0], np.float32),
        classes=("a",),
        counts=np.array([9, 9]),
        reference=reference,
        whole=np.array([whole, whole], np.float32),
        policy=None,
    )


@pytest.mark.parametrize(
    ("losses", "reference", "phrases"),
    [
        (
            [[2, 2], [0.9, 0.4], [0.8, 0.7]],
            "lungs",
            ["lowest, 0.40, on boxes 1.00 times", "1.00 on the whole", "policy there."],
        ),
        (
            [[2, 2], [2, 0.97], [1.1, 1.2]],
            "lungs",
            ["not better on any of these boxes than on the whole image"],
        ),
        (
            [[2, 2], [2, 0.8], [0.3, 0.5]],
            "lungs",
            ["2.00 times", "moved left by 0.50", "it is 0.80 on the lungs", "but more"],
        ),
        (
            [[2, 2], [2, 1.5], [0.7, 0.3]],
            "lungs",
            ["does not profit from the lungs", "1.50 on the lungs"],
        ),
        # 0.43 is not told from 0.40 at a loss of 1 on the whole image.
        ([[2, 2], [2, 0.43], [2, 0.4]], "lungs", ["2.00 times", "policy there."]),
        ([[2, 2], [2, 0.4], [2, 0.6]], "policy", ["key area", "to stay there."]),
    ],
)
def test_verdict(losses, reference, phrases):
    text = reward_landscape.verdict(_of_all(losses, reference=reference))
    for phrase in phrases:
        assert phrase in text


def test_best_zoom_is_of_centered_boxes_around_the_lungs():
    losses = [[0.1, 0.9], [0.2, 0.5], [0.3, 0.7]]  # a shift has the lowest loss
    found = _of_all(losses)._replace(
        zooms=np.array([0.8, 1.25, 2.0]), shifts=np.array([0.5, 0.0])
    )
    assert reward_landscape.best_zoom(found) == 1.25
    assert reward_landscape.best_zoom(found._replace(reference="policy")) is None


def test_overlap_is_with_the_scaled_lungs():
    lungs = np.array([(0.4, 0.4, 0.6, 0.6), (np.nan,) * 4, (0, 0, 0.2, 0.2)], "f4")
    areas = np.array([(0.4, 0.4, 0.6, 0.6), (0, 0, 1, 1), (0, 0, 0.4, 0.4)], "f4")
    # Twice the lungs: a quarter of it is kept; the one in the corner is moved inside.
    assert reward_landscape.overlap(areas, lungs, 2.0) == pytest.approx((0.25 + 1) / 2)
    assert reward_landscape.overlap(areas, lungs, 1.0) == pytest.approx((1 + 0.25) / 2)


def test_it_is_saved_as_a_picture_and_its_numbers(tmp_path):
    source = _dataset(LUNGS, classes=("normal", "viral", "other"))
    found = reward_landscape.measure(_method(_linear), STATE, source)
    landscape_sheet.save(found, tmp_path / "landscape.png", step=40)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "landscape.json",
        "landscape.png",
    ]
    with Image.open(tmp_path / "landscape.png") as picture:
        assert picture.format == "PNG" and picture.width >= 900

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "landscape.json").read_text()
    values = json.loads(text, parse_constant=no_constant)
    assert values["step"] == 40 and values["reference"] == "lungs"
    assert values["classes"] == ["normal", "viral", "other"]
    assert values["counts"] == [1, 2, 0, 3]
    assert values["whole"][0] == pytest.approx(30.0) and values["whole"][2] is None
    np.testing.assert_allclose(
        np.array(values["losses"])[3].astype(float), found.losses[3]
    )
    assert np.shape(values["losses"]) == (4, 7, 5)


def test_plain_classifier_on_the_whole_box_is_what_it_predicts():
    config = shrink(dataclasses.replace(config_lib.Config(), method="plain"))
    method = plain.make(config, 3)
    trained = train_state.init(method, optimization.make_optimizer(config), config)
    image = np.random.default_rng(0).uniform(size=(3, 32, 32, 1)).astype(np.float32)
    batch = {"image": image, "label": np.array([0, 2, 1])}
    whole = jnp.tile(jnp.array(boxes.WHOLE), (3, 1))
    losses = method.task_losses(*trained.average, batch, whole)
    probabilities = method.predict(*trained.average, {"image": image}).probabilities
    expected = -np.log(np.asarray(probabilities)[np.arange(3), batch["label"]])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    quarter = jnp.tile(jnp.array([0.0, 0.0, 0.5, 0.5]), (3, 1))
    corner = method.predict(*trained.average, {"image": image[:, :16, :16]})
    expected = -np.log(np.asarray(corner.probabilities)[range(3), batch["label"]])
    losses = method.task_losses(*trained.average, batch, quarter)
    # At the inner edges, resizing the cut image repeats its last pixel.
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_an_operation_without_an_area_has_no_landscape(tmp_path):
    config = config_lib.override(config_lib.Config(), "policy.operation", "rotation")
    run_folder.write_config(tmp_path, config)
    with pytest.raises(UserError, match=r"rotation, which keeps no area.*zoom$"):
        landscape.main([str(tmp_path)])


def test_program_measures_a_run_on_its_own_split(tmp_path, capsys, monkeypatch):
    config = shrink(
        dataclasses.replace(config_lib.Config(), method="plain", compare_plain=False)
    )
    # As training leaves it: the plain run lies in the folder of another, which has the
    # split.
    run = tmp_path / "a[" / "b]" / "plain"  # brackets that are no markup
    run_folder.write_config(run, config)
    data = pipeline.load(config.data, seed=config.seed)
    splits.write(run.parent / "splits.csv", pipeline.division(data))
    method = plain.make(config, 3)
    trained = train_state.init(method, optimization.make_optimizer(config), config)
    checkpoints = checkpoint.Checkpoints(run)
    checkpoints.save("best", trained, {"macro_f1": 0.0})
    checkpoints.close()

    assert landscape.main([str(run)]) == 0
    output = capsys.readouterr().out
    assert f"{len(data.validation)} images" in output
    assert "The loss is lowest" in output and "landscape.png" in output
    values = json.loads((run / "landscape.json").read_text())
    expected = reward_landscape.measure(method, trained, data.validation)
    np.testing.assert_allclose(values["losses"], expected.losses, rtol=1e-5)
    assert values["policy"] is None and (run / "landscape.png").exists()
    assert not (run / "splits.csv").exists()

    # Said before it is measured; the tests may run as root, who may write anywhere.
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(UserError, match=r"b\]/plain cannot be written to; choose"):
            landscape.main([str(run)])

    # Other films leave the run's own picture, which its page shows.
    assert landscape.main([str(run), "--data.quality", "high"]) == 0
    assert "landscape_elsewhere.png" in capsys.readouterr().out
    assert json.loads((run / "landscape.json").read_text()) == values
    other = json.loads((run / "landscape_elsewhere.json").read_text())
    assert other["losses"] != values["losses"]
    # Fewer phantoms are divided anew: those of its training do not count.
    with pytest.raises(UserError, match="trained on all of these validation films"):
        landscape.main([str(run), "--data.train_images", "9"])
    with pytest.raises(UserError, match=r"^task\.image_size was 16 in training; land"):
        landscape.main([str(run), "--task.image_size", "32"])
    json_file.write(run / "results.json", FACTS | {"test": SCORES})
    with pytest.raises(UserError) as error:
        landscape.main([str(run)])
    assert str(error.value) == (
        "the run tells normal, pneumonia apart, and these films are normal, bacterial, "
        "viral: a landscape needs the same classes"
    )
