"""Random augmentation, cutout, CutMix and mixup."""

import dataclasses
import io
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from hapre_jax import config, optimization, tasks, train, train_state, train_step
from hapre_jax.data import dataset, feed
from hapre_jax.errors import UserError
from hapre_jax.method import Aux, Method
from hapre_jax.methods import METHODS, augment, cutmix, cutout, mixup, plain, random_aug
from hapre_jax.nets import Output

KEY = jax.random.key(0)
NAMES = ("random_aug", "cutout", "cutmix", "mixup")
MIXING = ("cutmix", "mixup")


class _Net:
    """A network whose logits are known, and which remembers what it was shown."""

    def __init__(self):
        self.seen = None

    def apply(self, variables, image, *, train, mutable, rngs=None):
        assert train and mutable == ["batch_stats"]
        self.seen = np.asarray(image)
        means = jnp.mean(image, axis=(1, 2, 3))
        return Output(means[:, None] * jnp.array([[1.0, 0.0, -2.0]]), {}), {}


@pytest.fixture(params=["image", "fixed"])
def normalization(request):
    return request.param


@pytest.fixture
def net(monkeypatch, normalization):
    """In the place of each method's task network; images are 4 x 4."""
    made = _Net()
    task = tasks.Classification(made, 4, normalization)
    monkeypatch.setattr(plain, "classification", lambda config, num_classes: task)
    return made


def _options(**changes):
    return config.Config(baseline=config.BaselineConfig(**changes))


def _loss(method, batch, key=KEY):
    value, aux = method.loss({"task": {}}, {"task": {}}, None, batch, key, 0)
    assert aux.metrics == {"task_loss": value}
    return float(value)


@pytest.fixture
def batch():
    """Five images of 4 x 4 pixels, of very different grays."""
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(5, 4, 4, 1)) * np.linspace(0.2, 1, 5)[:, None, None, None]
    label = jnp.array([0, 1, 2, 1, 0], jnp.int32)
    return {"image": jnp.array(image, jnp.float32), "label": label}


def _cross_entropy(seen, labels):
    """Of `_Net`, by hand, in float64."""
    logits = seen.astype(float).mean((1, 2, 3))[:, None] * np.array([1.0, 0.0, -2.0])
    normalizer = np.log(np.exp(logits).sum(1))
    return normalizer - logits[np.arange(len(labels)), np.asarray(labels)]


# Squares.


@pytest.mark.parametrize(
    ("center", "side", "rows", "columns"),
    [
        ((1, 2), 2, [0, 1], [1, 2]),
        ((1, 2), 3, [0, 1, 2], [1, 2, 3]),
        ((0, 3), 2, [0], [2, 3]),
        ((3, 0), 3, [2, 3], [0, 1]),
        ((2, 2), 1, [2], [2]),
        ((2, 1), 0, [], []),
        ((0, 0), 4, [0, 1], [0, 1]),
        ((2, 2), 4, [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_square_by_hand(strict_dtypes, center, side, rows, columns):
    expected = np.zeros((4, 4), bool)
    expected[np.ix_(rows, columns)] = True
    found = augment.square(jnp.array(center), side, size=4)
    np.testing.assert_array_equal(found, expected)
    traced = jax.jit(augment.square, static_argnames="size")
    found = traced(jnp.array(center), jnp.array(side), size=4)
    np.testing.assert_array_equal(found, expected)


def test_squares_lie_around_every_pixel_equally_often():
    keys = jax.random.split(KEY, 8000)
    draw = jax.jit(jax.vmap(lambda key: augment.random_square(key, 1, size=4)))
    frequency = np.asarray(draw(keys)).mean(0)
    np.testing.assert_allclose(frequency, 1 / 16, atol=0.011)  # four deviations


# Cutout.


@pytest.mark.parametrize("fill", ["mean", "black"])
@pytest.mark.parametrize("side", [0.25, 0.5, 1.0])
def test_cutout_shows_images_with_a_hole(net, batch, normalization, fill, side):
    method = METHODS["cutout"](_options(cutout_side=side, cutout_fill=fill), 3)
    loss = _loss(method, batch)
    normalized = np.asarray(tasks.normalize(batch["image"], normalization))
    # Gray to normalized gray is a line through all pixels of an image.
    gray = np.asarray(batch["image"], float)
    slope = np.ptp(normalized, (1, 2, 3)) / np.ptp(gray, (1, 2, 3))
    black = normalized.mean((1, 2, 3)) - slope * gray.mean((1, 2, 3))
    for index in range(5):
        hole = net.seen[index] != normalized[index]
        rows, columns = hole[:, :, 0].any(1), hole[:, :, 0].any(0)
        np.testing.assert_array_equal(hole[:, :, 0], rows[:, None] & columns[None])
        longest = round(4 * side)
        assert 1 <= max(rows.sum(), columns.sum()) <= longest
        expected = black[index] if fill == "black" else 0
        np.testing.assert_allclose(net.seen[index][hole], expected, atol=1e-4)
    assert len(np.unique(net.seen != normalized, axis=0)) > 1  # not one for all
    expected = _cross_entropy(net.seen, batch["label"]).mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert not method.needs_partner


def test_a_hole_by_hand(monkeypatch):
    where = np.zeros((4, 4), bool)
    where[1:3, 2:] = True
    monkeypatch.setattr(
        augment, "random_square", lambda key, side, *, size: jnp.array(where)
    )
    image = jnp.arange(16.0).reshape(4, 4, 1)
    found = cutout.cut_hole(KEY, image, jnp.full((1, 1, 1), -7.0), side=2)
    expected = [[0, 1, 2, 3], [4, 5, -7, -7], [8, 9, -7, -7], [12, 13, 14, 15]]
    np.testing.assert_array_equal(found[:, :, 0], expected)


# CutMix.


def test_cutmix_pastes_and_weighs_labels_by_area(net, batch, normalization):
    method = METHODS["cutmix"](_options(), 3)
    normalized = np.asarray(tasks.normalize(batch["image"], normalization))
    shares = set()
    for seed in range(6):
        loss = _loss(method, batch, jax.random.key(seed))
        others, pasted = [], np.zeros((4, 4), bool)
        for index, image in enumerate(net.seen):
            # Each pixel is that of one image of the batch.
            origin = np.abs(image[None] - normalized)[:, :, :, 0].argmin(0)
            is_other = origin != index
            pasted |= is_other
            partner = set(origin[is_other].tolist()) or {index}
            assert len(partner) == 1
            others.append(int(batch["label"][partner.pop()]))
        rows, columns = pasted.any(1), pasted.any(0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns[None])
        share = 1 - pasted.mean()
        shares.add(share)
        expected = share * _cross_entropy(net.seen, batch["label"])
        expected += (1 - share) * _cross_entropy(net.seen, others)
        assert loss == pytest.approx(expected.mean(), rel=1e-5)
    assert len(shares) > 2


def test_cutmix_without_a_box_is_plain(net, batch, normalization):
    loss = _loss(METHODS["cutmix"](_options(cutmix_probability=0.0), 3), batch)
    normalized = np.asarray(tasks.normalize(batch["image"], normalization))
    np.testing.assert_array_equal(net.seen, normalized)
    expected = _cross_entropy(normalized, batch["label"]).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("beta", "probability"), [(1.0, 1.0), (0.5, 0.4)])
def test_boxes_have_the_area_that_beta_draws(monkeypatch, beta, probability):
    monkeypatch.setattr(augment, "random_square", lambda key, side, *, size: side)
    keys = jax.random.split(KEY, 4000)

    def draw(key):
        return cutmix.random_box(key, size=1000, beta=beta, probability=probability)

    sides = np.asarray(jax.jit(jax.vmap(draw))(keys))
    mixed = sides[sides > 0] / 1000
    assert len(mixed) / 4000 == pytest.approx(probability, abs=0.035)
    beta = scipy.stats.beta(beta, beta)
    for quantile in (0.1, 0.3, 0.5, 0.8):
        # Of the share that is left: 1 - area.
        below = np.mean(1 - mixed**2 < beta.ppf(quantile))
        assert below == pytest.approx(quantile, abs=0.05)


@pytest.mark.parametrize(
    ("rows", "columns", "share"),
    [(slice(0, 2), slice(1, 4), 1 - 6 / 16), (slice(0, 0), slice(0, 4), 1.0)],
)
def test_paste_and_share_by_hand(rows, columns, share):
    box = np.zeros((4, 4), bool)
    box[rows, columns] = True
    image = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    expected = image.copy()
    expected[rows, columns] += 100
    found = cutmix.paste(jnp.array(image), jnp.array(image + 100), jnp.array(box))
    np.testing.assert_array_equal(found, expected)
    assert float(cutmix.kept(jnp.array(box))) == share


# Mixup.


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_mixup_of_a_fixed_ratio(net, batch, normalization, monkeypatch, ratio):
    order = np.array([3, 0, 1, 4, 2])
    monkeypatch.setattr(
        augment,
        "partners",
        lambda key, films: jax.tree.map(lambda array: array[order], films),
    )
    loss = _loss(METHODS["mixup"](_options(mixup_ratio=ratio), 3), batch)
    normalized = np.asarray(tasks.normalize(batch["image"], normalization))
    expected = ratio * normalized + (1 - ratio) * normalized[order]
    np.testing.assert_allclose(net.seen, expected, atol=1e-6)
    losses = ratio * _cross_entropy(net.seen, batch["label"])
    losses += (1 - ratio) * _cross_entropy(net.seen, batch["label"][order])
    assert loss == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("normalization", ["fixed"], indirect=True)
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_draws_one_weight_a_batch(net, alpha):
    method = METHODS["mixup"](_options(mixup_alpha=alpha), 3)
    pair = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
    batch = {"image": pair[:1], "label": jnp.array([0])}
    batch["partner"] = {"image": pair[1:], "label": jnp.array([1])}
    low, high = np.asarray(tasks.normalize(pair, "fixed"))[:, 0, 0, 0]

    def weight(key):
        mixture = []
        net.apply = lambda variables, image, **_: (
            mixture.append(image)
            or (
                Output(jnp.zeros((len(image), 3)), {}),
                {},
            )
        )
        method.loss({"task": {}}, {"task": {}}, None, batch, key, 0)
        return (mixture[0].min() - high) / (low - high)

    weights = np.asarray(jax.jit(jax.vmap(weight))(jax.random.split(KEY, 4000)))
    assert np.isfinite(weights).all()
    beta = scipy.stats.beta(alpha, alpha)
    for quantile in (0.2, 0.5, 0.7):
        below = np.mean(weights < beta.ppf(quantile))
        assert below == pytest.approx(quantile, abs=0.035)


def test_mixtures_by_hand():
    image, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
    mixed = mixup.mix(image[:, :, None], other[:, :, None], jnp.array(0.75))
    np.testing.assert_allclose(mixed[:, :, 0], [[0.75, 0.5]])


# Partners.


def test_partners_are_the_batch_in_another_order():
    count = jnp.arange(40)
    films = augment.Films(
        jnp.broadcast_to(count[:, None, None, None] / 100, (40, 2, 2, 1)),
        count,
        count[:, None, None, None] / -100,
    )
    found = jax.jit(augment.partners)(KEY, films)
    order = np.asarray(found.label)
    assert sorted(order.tolist()) == list(range(40)) != order.tolist()
    for array, expected in zip(found, films, strict=True):
        np.testing.assert_array_equal(array, expected[order])
    other = jax.jit(augment.partners)(jax.random.key(1), films)
    assert (other.label != found.label).any()


@pytest.mark.parametrize("name", MIXING)
def test_a_batch_of_one_is_mixed_with_its_partner(
    net, batch, normalization, monkeypatch, name
):
    box = jnp.zeros((4, 4), bool).at[:3, 1:].set(True)
    monkeypatch.setattr(cutmix, "random_box", lambda key, **options: box)
    method = METHODS[name](_options(mixup_ratio=0.25), 3)
    assert method.needs_partner
    alone = {key: value[:1] for key, value in batch.items()}
    both = alone | {"partner": {key: value[2:3] for key, value in batch.items()}}
    loss = _loss(method, both)
    image, partner = np.asarray(tasks.normalize(batch["image"], normalization))[[0, 2]]
    if name == "mixup":
        share, expected = 0.25, 0.25 * image + 0.75 * partner
    else:
        share, expected = 7 / 16, image.copy()
        expected[:3, 1:] = partner[:3, 1:]
    np.testing.assert_allclose(net.seen[0], expected, atol=1e-6)
    losses = [_cross_entropy(net.seen, [label]) for label in (0, 2)]
    expected = share * losses[0] + (1 - share) * losses[1]
    assert loss == pytest.approx(float(expected[0]), rel=1e-5)
    with pytest.raises(KeyError, match="partner"):
        _loss(method, alone)


def _numbered(count):
    """Image i is filled with i, and of class i."""
    return dataset.Dataset(
        images=np.zeros((count, 2, 2, 1), np.uint8)
        + np.arange(count, dtype=np.uint8)[:, None, None, None],
        labels=np.arange(count, dtype=np.int32),
        names=tuple(map(str, range(count))),
        groups=tuple(map(str, range(count))),
        classes=tuple(map(str, range(count))),
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_partners_of_a_feed_go_on_from_any_position(batch_size):
    def rows(start, **options):
        batches = feed.TrainIterator(
            _numbered(7), batch_size=batch_size, seed=2**32 - 1, start=start, **options
        )
        return [next(batches) for _ in range(28)]

    found = rows(0, partners=True)
    partners = [batch.pop("partner") for batch in found]
    # The batches are those that there would be without partners.
    chex.assert_trees_all_equal(found, rows(0))
    own, others = (
        np.concatenate([batch["index"] for batch in side]) for side in (found, partners)
    )
    for partner in partners:
        np.testing.assert_array_equal(partner["image"][:, 0, 0, 0], partner["index"])
        np.testing.assert_array_equal(partner["label"], partner["index"])
    # Its own order, complete in each epoch.
    epochs = others[: 4 * 7].reshape(4, 7)
    assert all(len(set(epoch.tolist())) == 7 for epoch in epochs)
    assert np.mean(own == others) < 0.5
    for start in (1, 5, 9):
        later = [batch["partner"] for batch in rows(start, partners=True)]
        chex.assert_trees_all_equal(later[: 28 - start], partners[start:])


def test_partners_depend_on_the_seed():
    def partners(seed):
        batches = feed.TrainIterator(
            _numbered(30), batch_size=30, seed=seed, partners=True
        )
        return next(batches)["partner"]["index"].tolist()

    assert partners(0) == partners(0) != partners(1)


def test_a_step_prepares_the_partner_as_the_image():
    """Pixels become numbers in [0, 1]; flips are drawn for each of both."""

    def init(key, image):
        return {"task": jnp.zeros(())}, {"task": {}}

    def loss(params, model_state, average, batch, key, step):
        partner = batch["partner"]
        metrics = {
            "first": batch["image"][0, 0, 0, 0],
            "other": partner["image"][0, 0, 0, 0],
            "label": partner["label"][0],
        }
        return params["task"], Aux(model_state, metrics)

    data = config.DataConfig(flip="vertical", flip_probability=0.5)
    settings = config.Config(data=data)
    method = Method(init, loss, None, None, needs_partner=True)
    optimizer = optimization.make_optimizer(settings)
    now = train_state.init(method, optimizer, settings)
    step = train_step.make_step(method, optimizer, settings)
    image = np.array([0, 0, 51, 51], np.uint8).reshape(1, 2, 2, 1)
    batch = {"image": image, "label": np.array([1])}
    partner = {"image": image + 102, "label": np.array([2])}
    seen = set()
    for _ in range(24):
        now, metrics = step(now, batch | {"partner": partner})
        seen.add((round(float(metrics["first"]), 4), round(float(metrics["other"]), 4)))
        assert metrics["label"] == 2
    assert seen == {(0.0, 0.4), (0.0, 0.6), (0.2, 0.4), (0.2, 0.6)}


# Random augmentation.


def test_random_operations_keep_the_type_of_an_image():
    image = jnp.zeros((8, 8, 1), jnp.bfloat16)
    for operations in (random_aug.chest(8), random_aug.randaugment(9, 8)):
        found = jax.eval_shape(
            lambda image, operations=operations: random_aug.apply_random(
                KEY, image, operations=operations, count=2, replace=True
            ),
            image,
        )
        assert found.dtype == image.dtype


def _digits(count, replace, keys=400):
    """How often each of four operations was applied, for each key: `[keys, 4]`."""
    operations = {
        str(digit): lambda image, draw, digit=digit: image + 10.0**digit
        for digit in range(4)
    }

    def run(key):
        return random_aug.apply_random(
            key,
            jnp.zeros((1, 1, 1)),
            operations=operations,
            count=count,
            replace=replace,
        )[0, 0, 0]

    sums = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, keys))).round()
    return np.stack([sums // 10**digit % 10 for digit in range(4)], axis=1)


@pytest.mark.parametrize(("count", "replace"), [(1, False), (2, False), (2, True)])
def test_operations_are_drawn_equally_often(count, replace):
    times = _digits(count, replace)
    assert (times.sum(1) == count).all()
    np.testing.assert_allclose(times.mean(0), count / 4, atol=0.13)
    twice = np.mean(times.max(1) == 2)
    assert twice == pytest.approx(0.25 if replace else 0, abs=0.09)


def test_operations_follow_each_other_and_draw_anew():
    operations = {"append": lambda image, draw: 100 * image + jnp.round(9 * draw[0])}

    def run(key):
        return random_aug.apply_random(
            key, jnp.zeros((1, 1, 1)), operations=operations, count=2, replace=True
        )[0, 0, 0]

    found = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, 200)))
    second = (found + 50) % 100 - 50
    first = (found - second) / 100
    for draws in (first, second):
        assert draws.min() == -9 and draws.max() == 9
        assert draws.mean() == pytest.approx(0, abs=1.6)  # four deviations
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def _film():
    y, x = np.mgrid[:20, :20]
    film = 120 + 60 * np.sin(y / 3) + 50 * np.cos(x / 4 + y / 9)
    return film.clip(0, 255).astype(np.uint8)


FILM = Image.fromarray(_film())
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def _affine(*matrix, resample=NEAREST):
    return FILM.transform(FILM.size, Image.Transform.AFFINE, matrix, resample)


def _zoomed(factor):
    offset = 10 - 10 / factor
    return _affine(1 / factor, 0, offset, 0, 1 / factor, offset, resample=BILINEAR)


def _assert_shows(operation, draw, expected):
    """Within a gray level of Pillow's; but for 1 %, where two pixels are as near."""
    image = jnp.array(np.asarray(FILM)[:, :, None], jnp.float32) / 255
    found = jax.jit(operation)(image, jnp.array(draw, jnp.float32))
    assert found.shape == image.shape and found.dtype == jnp.float32
    difference = np.asarray(found)[:, :, 0] * 255 - np.asarray(expected, float)
    assert np.mean(np.abs(difference) > 1.5) <= 0.01


@pytest.mark.parametrize(
    ("name", "draw", "expected"),
    [
        ("rotate", (1, 0), FILM.rotate(15, BILINEAR)),
        ("rotate", (-0.5, 0), FILM.rotate(-7.5, BILINEAR)),
        ("translate", (1, -0.5), _affine(1, 0, 1, 0, 1, -2, resample=BILINEAR)),
        ("scale", (1, 0), _zoomed(1.1)),
        ("scale", (-1, 0), _zoomed(0.9)),
        ("brightness", (1, 0), ImageEnhance.Brightness(FILM).enhance(1.2)),
        ("brightness", (-1, 0), ImageEnhance.Brightness(FILM).enhance(0.8)),
        ("contrast", (1, 0), ImageEnhance.Contrast(FILM).enhance(1.2)),
        ("flip", (-0.1, 0), ImageOps.mirror(FILM)),
        ("flip", (0.1, 0), FILM),
    ],
)
def test_operations_for_chest_films(name, draw, expected):
    operations = random_aug.chest(20)
    assert len(operations) == 6
    _assert_shows(operations[name], draw, expected)


# torchvision's table at magnitude 9 of 30, on 20 pixels; and at 30.
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("name", "at_9", "at_30"),
    [
        ("identity", lambda s: FILM, lambda s: FILM),
        ("color", lambda s: FILM, lambda s: FILM),
        (
            "shear_x",
            lambda s: _affine(1, 0.09 * s, 0, 0, 1, 0),
            lambda s: _affine(1, 0.3 * s, 0, 0, 1, 0),
        ),
        (
            "shear_y",
            lambda s: _affine(1, 0, 0, 0.09 * s, 1, 0),
            lambda s: _affine(1, 0, 0, 0.3 * s, 1, 0),
        ),
        # int(150 / 331 * 20 * 0.3) = 2 and int(150 / 331 * 20) = 9
        (
            "translate_x",
            lambda s: _affine(1, 0, -2 * s, 0, 1, 0),
            lambda s: _affine(1, 0, -9 * s, 0, 1, 0),
        ),
        (
            "translate_y",
            lambda s: _affine(1, 0, 0, 0, 1, -2 * s),
            lambda s: _affine(1, 0, 0, 0, 1, -9 * s),
        ),
        ("rotate", lambda s: FILM.rotate(9 * s), lambda s: FILM.rotate(30 * s)),
        *(
            (
                name,
                lambda s, make=make: make(FILM).enhance(1 + 0.27 * s),
                lambda s, make=make: make(FILM).enhance(1 + 0.9 * s),
            )
            for name, make in (
                ("brightness", ImageEnhance.Brightness),
                ("contrast", ImageEnhance.Contrast),
                ("sharpness", ImageEnhance.Sharpness),
            )
        ),
        (
            "posterize",
            lambda s: ImageOps.posterize(FILM, 7),
            lambda s: ImageOps.posterize(FILM, 4),
        ),
        (
            "solarize",
            lambda s: ImageOps.solarize(FILM, 178.5),
            lambda s: ImageOps.solarize(FILM, 0),
        ),
        *(
            (name, lambda s, run=run: run(FILM), lambda s, run=run: run(FILM))
            for name, run in (
                ("autocontrast", ImageOps.autocontrast),
                ("equalize", ImageOps.equalize),
            )
        ),
    ],
)
def test_operations_of_randaugment(name, at_9, at_30, sign):
    for magnitude, expected in ((9, at_9), (30, at_30)):
        operations = random_aug.randaugment(magnitude, 20)
        assert len(operations) == 14
        _assert_shows(operations[name], (0.4 * sign, 0), expected(sign))


@pytest.mark.parametrize("name", ["chest", "randaugment"])
def test_random_aug_shows_changed_images(tiny_config, name):
    """Jitted, as eager; by the key alone; gray levels stay in [0, 1]."""
    operations = {
        "chest": random_aug.chest(16),
        "randaugment": random_aug.randaugment(9, 16),
    }[name]
    image = jnp.array(np.asarray(FILM)[2:18, 2:18, None], jnp.float32) / 255

    def run(key):
        return random_aug.apply_random(
            key, image, operations=operations, count=2, replace=name != "chest"
        )

    keys = jax.random.split(KEY, 64)
    shown = np.asarray(jax.jit(jax.vmap(run))(keys))
    assert shown.shape == (64, 16, 16, 1) and shown.dtype == np.float32
    assert 0 <= shown.min() and shown.max() <= 1
    np.testing.assert_allclose(shown[5], run(keys[5]), atol=1e-5)
    is_other = np.abs(shown - np.asarray(image)[None]).max((1, 2, 3)) > 1e-3
    assert is_other.mean() > 0.7
    assert len(np.unique(shown.round(3), axis=0)) > 32


# All four, with the tiny experiment's network.


@pytest.fixture(scope="module")
def films():
    """Eight films of three classes, which differ where they are bright."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 0.3, (8, 32, 32, 1)).astype(np.float32)
    label = np.arange(8, dtype=np.int32) % 3
    for index, place in enumerate(label):
        image[index, 10 * place : 10 * place + 10] += 0.6
    return {"image": jnp.array(image), "label": jnp.array(label)}


@pytest.fixture(scope="module")
def weights(tiny_config, films):
    return jax.jit(METHODS["plain"](tiny_config, 3).init)(KEY, films["image"][:1])


@pytest.fixture(scope="module")
def plain_loss(tiny_config, films, weights):
    method = METHODS["plain"](tiny_config, 3)
    return jax.jit(method.loss)(*weights, None, films, KEY, 0)[0]


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_plain(tiny_config, films, weights, name):
    method = METHODS[name](tiny_config, 3)
    shapes = jax.eval_shape(method.init, KEY, films["image"][:1])
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, weights)
    answers = [
        jax.jit(way.predict)(*weights, {"image": films["image"]})
        for way in (METHODS["plain"](tiny_config, 3), method, method)
    ]
    for answer in answers:
        assert answer.area is None
        np.testing.assert_array_equal(answer.probabilities, answers[0].probabilities)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_downhill_lowers_the_loss(tiny_config, films, weights, plain_loss, name):
    method = METHODS[name](tiny_config, 3)
    params, model_state = weights

    @jax.jit
    def measure(params, key):
        def loss(params):
            return method.loss(params, model_state, None, films, key, 0)

        (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, aux, gradient

    value, aux, gradient = measure(params, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(aux.model_state, model_state)
    again, _, _ = measure(params, KEY)
    other, _, _ = measure(params, jax.random.key(7))
    assert value == again and value != other
    stepped = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    lower, _, _ = measure(stepped, KEY)
    assert np.isfinite(lower) and lower < value - 1e-3
    # Not what plain is trained on.
    assert abs(plain_loss - value) > 1e-4


@pytest.mark.parametrize(
    "name", ["cutmix", pytest.param("mixup", marks=pytest.mark.slow)]
)
def test_a_run_with_batches_of_one_goes_on_exactly(tmp_path, tiny_config, name):
    settings = dataclasses.replace(
        tiny_config,
        method=name,
        compare_plain=False,
        train=dataclasses.replace(tiny_config.train, batch_size=1),
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    results = train.train_and_evaluate(settings, whole)
    assert results["method"] == name and results["test"]["n"] == 12
    # As it was when the fourth of six steps had been saved.
    shutil.copytree(whole, parts)
    (parts / "results.json").unlink()
    for later in list(parts.glob("checkpoints/*/6")):
        shutil.rmtree(later)
    console = rich.console.Console(file=io.StringIO())
    again = train.train_and_evaluate(settings, parts, console=console)
    assert f"{name}: going on from step 4" in console.file.getvalue()
    assert again["test"] == results["test"]
    records = [run / "metrics.jsonl" for run in (whole, parts)]
    assert records[0].read_bytes() == records[1].read_bytes()
    saved = json.loads((whole / "config.json").read_text())
    assert saved["baseline"]["mixup_ratio"] is None


# Configuration.


@pytest.mark.parametrize(
    ("path", "value", "accepted"),
    [
        ("random_aug", "strong", "one of chest, randaugment"),
        ("random_aug_operations", "0", "an integer >= 1 and <= 6"),
        ("random_aug_operations", "7", "an integer >= 1 and <= 6"),
        ("random_aug_magnitude", "31", "an integer >= 0 and <= 30"),
        ("cutout_side", "0.0", "a number > 0 and <= 1"),
        ("cutout_side", "1.5", "a number > 0 and <= 1"),
        ("cutout_fill", "white", "one of mean, black"),
        ("cutmix_beta", "0.0", "a number > 0"),
        ("cutmix_probability", "1.1", "a number >= 0 and <= 1"),
        ("mixup_alpha", "-1.0", "a number > 0"),
        ("mixup_ratio", "2.0", "none or a number >= 0 and <= 1"),
    ],
)
def test_options_that_are_not_accepted(path, value, accepted):
    with pytest.raises(UserError) as error:
        config.override(config.Config(), f"baseline.{path}", value)
    said = str(error.value)
    assert said.startswith(f"baseline.{path} is ") and said.endswith(accepted)


def test_a_ratio_may_be_given_and_taken_back():
    given = config.override(config.Config(), "baseline.mixup_ratio", "0.5")
    assert given.baseline.mixup_ratio == 0.5
    assert config.override(given, "baseline.mixup_ratio", "none") == config.Config()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_may_name_them(name):
    settings = config.override(config.Config(), "method", name)
    assert config.from_dict(config.to_dict(settings)) == settings
