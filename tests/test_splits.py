import collections
import os

import numpy as np
import pytest

from hapre_jax import errors
from hapre_jax.data import splits

FRACTIONS = (0.7, 0.1, 0.2)


def random_source(seed):
    """Groups of 1..12 images, mostly of one class, as patients are."""
    rng = np.random.default_rng(seed)
    groups, labels = [], []
    for group in range(int(rng.integers(60, 200))):
        label = rng.choice(3, p=(0.6, 0.3, 0.1))
        for _ in range(min(rng.geometric(0.5), 12)):
            groups.append(f"g{group}")
            labels.append(int(label if rng.random() < 0.95 else rng.integers(3)))
    order = rng.permutation(len(groups))
    return [groups[i] for i in order], [labels[i] for i in order]


@pytest.mark.parametrize("seed", range(10))
def test_groups_are_never_divided_and_shares_are_met(seed):
    groups, labels = random_source(seed)
    split = splits.assign(groups, labels, fractions=FRACTIONS, seed=seed)
    of_group = collections.defaultdict(set)
    for group, name in zip(groups, split, strict=True):
        of_group[group].add(name)
    assert all(len(names) == 1 for names in of_group.values())
    assert splits.shared_with_train(groups, split) == 0
    # Off by less than the largest group for each of three classes, plus the images
    # of another class in a group.
    largest = max(collections.Counter(groups).values())
    for name, share in zip(splits.SPLITS, FRACTIONS, strict=True):
        assert abs((split == name).sum() - share * len(groups)) < 3 * largest
        for label in range(3):
            mine = np.array(labels) == label
            off = abs((split[mine] == name).sum() - share * mine.sum())
            assert off < largest + 0.1 * len(groups)
    again = splits.assign(groups, labels, fractions=FRACTIONS, seed=seed)
    np.testing.assert_array_equal(split, again)
    other = splits.assign(groups, labels, fractions=FRACTIONS, seed=seed + 1)
    assert (split != other).any()


def test_single_images_are_divided_exactly():
    labels = [0] * 100 + [1] * 50 + [2] * 10
    names = [str(i) for i in range(160)]
    split = splits.assign(names, labels, seed=3)
    counts = {
        (label, name): int((split[np.array(labels) == label] == name).sum())
        for label in range(3)
        for name in splits.SPLITS
    }
    assert list(counts.values()) == [70, 10, 20, 35, 5, 10, 7, 1, 2]


def test_large_groups_are_tested_as_often_as_small_ones():
    groups = ["large"] * 6 + [f"small{i}" for i in range(54)]
    tested = collections.Counter()
    for seed in range(400):
        split = splits.assign(groups, [0] * 60, seed=seed)
        tested["large"] += split[0] == "test"
        tested["small"] += split[-1] == "test"
    # 400 draws of probability 0.2: 80, standard deviation 8.
    assert abs(tested["large"] - 80) < 32 and abs(tested["small"] - 80) < 32


def test_image_level_ignores_groups():
    groups = ["same"] * 100
    split = splits.assign(groups, [0] * 100, seed=0, level="image")
    assert [(split == name).sum() for name in splits.SPLITS] == [70, 10, 20]
    assert splits.shared_with_train(groups, split) == 20


def test_without_a_share_for_the_test_nothing_is_tested():
    groups = [f"g{i // 2}" for i in range(80)]
    split = splits.assign(groups, [0] * 80, seed=1, fractions=(0.875, 0.125))
    assert [(split == name).sum() for name in splits.SPLITS] == [70, 10, 0]
    assert (split[::2] == split[1::2]).all()


@pytest.mark.parametrize("level", splits.LEVELS)
def test_identical_files_are_never_parted(level):
    hashes = [str(i % 30) for i in range(60)]
    names = [str(i) for i in range(60)]
    for seed in range(5):
        split = splits.assign(names, [0] * 60, hashes=hashes, seed=seed, level=level)
        assert (split[:30] == split[30:]).all()
        assert set(split) == set(splits.SPLITS)


def test_shared_with_train_by_hand():
    groups = ["a", "a", "b", "b", "c", "c", "d"]
    split = ["train", "test", "validation", "test", "test", "test", "train"]
    assert splits.shared_with_train(groups, split) == 1
    assert splits.shared_with_train(["a"] * 3, ["train", "test", "test"]) == 2


def test_identical_files_join_their_groups():
    groups = ["a", "b", "b", "c", "d", "e"]
    hashes = ["1", "1", "2", "2", "3", "4"]
    joined = splits.join_identical(groups, hashes)
    assert len({joined[0], joined[1], joined[2], joined[3]}) == 1
    assert len({joined[3], joined[4], joined[5]}) == 3
    assert splits.join_identical(groups, list("123456")) == groups


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"level": "hospital"}, "'hospital' is none of group, image"),
        ({"fractions": (0.7, 0.2)}, "two or three positive numbers"),
        ({"fractions": (1.0,)}, "two or three positive numbers"),
        ({"fractions": (0.8, 0.0, 0.2)}, "three positive numbers"),
        ({"fractions": (0.7, 0.2, 0.2)}, "three positive numbers"),
        ({"groups": ["one"] * 20}, "the validation split is empty: 1 group"),
    ],
)
def test_what_cannot_be_divided(arguments, said):
    arguments = {"groups": [str(i) for i in range(20)], **arguments}
    with pytest.raises(errors.UserError, match=said):
        splits.assign(labels=[0] * 20, seed=0, **arguments)


ROWS = [
    splits.Row("a/1, left.png", "ab12", "normal", "ann", "train"),
    splits.Row("a/2.png", "cd34", "normal", 'bob "b"', "validation"),
    splits.Row("b/\udcff.png", "ef56", "viral", "cyd", "test"),  # not UTF-8
]


def test_file_round_trip(tmp_path):
    path = tmp_path / "run" / "splits.csv"
    splits.write(path, ROWS)
    assert splits.read(path) == ROWS
    assert path.read_text(errors="replace").startswith(
        "path,sha256,label,group,split\n"
    )
    assert os.listdir(path.parent) == ["splits.csv"]
    shuffled = [ROWS[i]._replace(split="") for i in (2, 0, 1)]
    np.testing.assert_array_equal(
        splits.recall(path, shuffled), ["test", "train", "validation"]
    )


def test_leaks_are_refused_by_name():
    splits.refuse_leaks(ROWS)
    again = ROWS[0]._replace(path="again.png", split="test")
    with pytest.raises(errors.UserError, match="identical .*a/1, left.png and again"):
        splits.refuse_leaks([*ROWS, again])
    other_film = again._replace(sha256="99")
    with pytest.raises(
        errors.UserError, match="one group .*in two splits, train and test"
    ):
        splits.refuse_leaks([*ROWS, other_film])
    splits.refuse_leaks([*ROWS, other_film], groups=False)
    with pytest.raises(errors.UserError, match="identical"):
        splits.refuse_leaks([*ROWS, again], groups=False)


def test_a_spreadsheet_may_have_put_a_mark_first(tmp_path):
    path = tmp_path / "splits.csv"
    splits.write(path, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert splits.read(path) == ROWS


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "splits.csv"
    splits.write(path, ROWS)

    def rows():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        splits.write(path, rows())
    assert splits.read(path) == ROWS


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([*ROWS, splits.Row("c.png", "", "", "", "")], "does not list c.png"),
        (ROWS[:2], "lists 1 image.* the first b/"),
        (
            [ROWS[0]._replace(sha256="00"), *ROWS[1:]],
            "sha256 of a/1, left.png was ab12",
        ),
        ([ROWS[0]._replace(label="viral"), *ROWS[1:]], "label .* was normal"),
        ([ROWS[0]._replace(group="eve"), *ROWS[1:]], "group .* is eve now"),
    ],
)
def test_changed_images_are_noticed(tmp_path, now, said):
    path = tmp_path / "splits.csv"
    splits.write(path, ROWS)
    with pytest.raises(errors.UserError, match=said) as caught:
        splits.recall(path, now)
    assert str(caught.value).endswith("or train anew in another folder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a split file"),
        ("path,label\nx,y\n", "is not a split file"),
        ("x" * 200_000, "is not a split file"),  # more than a cell may hold
        ("path,sha256,label,group,split\na,b,c,d,holdout\n", "is not a split file"),
        ("path,sha256,label,group,split\na,b\n", "is not a split file"),
        ("path,sha256,label,group,split\na,b,c,d,train\n", "no image to test, valid"),
    ],
)
def test_damaged_files(tmp_path, text, said):
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(errors.UserError, match=said):
        splits.read(path)
