"""What a config asks for, of real files and of what was prepared of them."""

import collections
import dataclasses
import io
import itertools

import numpy as np
import pytest
import rich.console
from PIL import Image

from hapre_jax import errors
from hapre_jax.config import DataConfig
from hapre_jax.data import dataset, phantom, preparation, sources


def film(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(root, members):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


VIEWS = ("PA", "AP", "", "pa", "LL")


def table(root):
    """Thirty films of three classes; the view of a fifth of them is not known."""
    members = {f"{i:02}.png": film(i) for i in range(30)}
    rows = [f"{i:02}.png,{'abc'[i % 3]},{i // 2},{VIEWS[i % 5]}" for i in range(30)]
    text = "\n".join(["path,label,group,view", *rows]) + "\n"
    write(root, members | {"films.csv": text.encode()})
    return f"{root}/films.csv"


def ped_tree(root):
    names = [
        "NORMAL/IM-0001-0001",
        "PNEUMONIA/person1_bacteria_1",
        "PNEUMONIA/person1_virus_2",
        "PNEUMONIA/person2_virus_3",
    ]
    return write(
        root, {f"chest_xray/train/{n}.jpeg": film(i) for i, n in enumerate(names)}
    )


def prepare(name, root, out):
    preparation.prepare(
        name,
        root=root,
        out=str(out),
        variant="",
        on_error="stop",
        console=rich.console.Console(file=io.StringIO()),
    )
    return str(out)


@pytest.fixture(scope="module", params=["raw", "prepared"])
def films(request, tmp_path_factory):
    """A config of the table."""
    path = tmp_path_factory.mktemp("films")
    root = table(path / "raw")
    if request.param == "prepared":
        root = prepare("folder", root, path / "out")
    return DataConfig(name="folder", root=root)


def opened(data, seed=0, **changes):
    return sources.open_source(dataclasses.replace(data, **changes), seed=seed)


def numbers(source):
    return [int(record.name.removesuffix(".png")) for record in source.records]


def assert_reads(source, seeds):
    """Film i of the source is the film of seed i."""
    assert len(source.records) == len(seeds)
    for index, seed in enumerate(seeds):
        assert source.read(index).encoded == film(seed)
        if source.facts is not None:
            assert source.facts[index] == source.read(index).facts


def test_all_films_unless_asked_otherwise(films):
    source = opened(films)
    assert source.name == "folder" and source.classes == ("a", "b", "c")
    assert numbers(source) == list(range(30))
    assert_reads(source, range(30))
    assert source.records[3] == dataset.Record("03.png", 0, "1", "PA")


@pytest.mark.parametrize(("view", "places"), [("PA", (0, 3)), ("AP", (1,))])
def test_one_view(films, view, places):
    source = opened(films, view=view)
    expected = [i for i in range(30) if i % 5 in places]
    assert numbers(source) == expected
    assert {record.view for record in source.records} == {view}
    assert_reads(source, expected)


def test_a_view_that_no_film_has(tmp_path):
    root = write(tmp_path, {"a/1.png": film(1), "b/2.png": film(2)})
    data = DataConfig(name="folder", root=root)
    with pytest.raises(errors.UserError, match="^folder has no film of view PA$"):
        opened(data, view="PA")


def test_drawn_films_are_of_each_class_as_many_as_asked_for(films):
    source = opened(films, draw=(2, 10, 1))
    labels = collections.Counter(record.label for record in source.records)
    assert labels == {0: 2, 1: 10, 2: 1}
    found = numbers(source)
    assert found == sorted(found)
    assert_reads(source, found)


def test_what_is_drawn_depends_on_the_seed_alone(films):
    draws = {seed: numbers(opened(films, seed, draw=(3, 3, 3))) for seed in range(4)}
    for first, second in itertools.combinations(draws.values(), 2):
        assert first != second
    for seed, found in draws.items():
        assert numbers(opened(films, seed, draw=(3, 3, 3))) == found
    # Each film is drawn now and then.
    draws = [numbers(opened(films, seed, draw=(3, 3, 3))) for seed in range(30)]
    assert set(itertools.chain(*draws)) == set(range(30))


def test_all_films_can_be_drawn(films):
    assert numbers(opened(films, draw=(10, 10, 10))) == list(range(30))


def test_drawing_is_of_the_view_asked_for(films):
    source = opened(films, view="AP", draw=(2, 2, 2))
    assert {record.view for record in source.records} == {"AP"}
    with pytest.raises(errors.UserError, match="but folder has 2 a, 2 b, 2 c$"):
        opened(films, view="AP", draw=(2, 3, 2))


@pytest.mark.parametrize("counts", [(11, 1, 1), (1, 1), (1, 1, 1, 1)])
def test_draws_that_cannot_be(films, counts):
    with pytest.raises(errors.UserError) as caught:
        opened(films, draw=counts)
    said = f"data.draw is {counts}, but folder has 10 a, 10 b, 10 c"
    assert str(caught.value) == said


def test_a_draw_is_of_at_least_one():
    with pytest.raises(errors.UserError, match="data.draw is .* >= 1"):
        DataConfig(draw=(0, 1))


@pytest.mark.parametrize("where", ["raw", "prepared"])
@pytest.mark.parametrize(
    ("bare", "groups"),
    [
        (False, "normal:IM-0001 bacteria:person1 virus:person1 virus:person2"),
        (True, "IM-0001 person1 person1 person2"),
    ],
)
def test_bare_groups_are_those_of_the_number(tmp_path, where, bare, groups):
    root = ped_tree(tmp_path / "raw")
    if where == "prepared":
        root = prepare("ped_pneumonia", root, tmp_path / "out")
    data = DataConfig(name="ped_pneumonia", root=root, bare_groups=bare)
    assert [record.group for record in opened(data).records] == groups.split()


def test_an_unknown_name_does_not_come_here():
    with pytest.raises(errors.UserError, match="data.name is 'mars', but must be one"):
        DataConfig(name="mars")
    names = DataConfig.__dataclass_fields__["name"].metadata["choices"]
    assert sources._SOURCES.keys() == set(names)


@pytest.mark.parametrize("name", ["ped_pneumonia", "folder"])
def test_a_root_has_to_be_given(name):
    with pytest.raises(errors.UserError, match="^data.root is empty: give"):
        opened(DataConfig(name=name))


def test_phantoms_are_drawn_by_the_seed_wherever_the_root_is(tmp_path):
    data = DataConfig(
        root=str(tmp_path / "nowhere"),
        image_size=16,
        quality="high",
        train_images=3,
        validation_images=2,
        test_images=1,
    )
    source = opened(data, 9)
    official = [record.official for record in source.records]
    assert official == 3 * ["train"] + 2 * ["validation"] + ["test"]
    drawn = phantom.make(5, seed=9, quality="high", size=16)
    np.testing.assert_array_equal(source.read(5).image, drawn.image)
