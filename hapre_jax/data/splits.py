"""Which image is trained on, chosen by or tested on; and the file that remembers it."""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hapre_jax import csv_file
from hapre_jax.data import csv_tables, files
from hapre_jax.errors import UserError

SPLITS = ("train", "validation", "test")
LEVELS = ("group", "image")


class Row(NamedTuple):
    """One line of a split file."""

    path: str
    sha256: str  # of the file's bytes
    label: str  # name of the class
    group: str
    split: str  # one of `SPLITS`


def assign(
    groups: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    *,
    hashes: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int,
    level: str = "group",
) -> np.ndarray:
    """Divides N images, class by class, in the proportions asked for.

    Groups come in random order; each goes whole to the split that is furthest below
    its share of the class, so shares are off by less than one group. The chance of a
    group to be tested does not depend on its size (that of being validated on does: it
    is smaller for large ones). A group of several classes counts
    for its commonest.

    Args:
      groups: N names.
      labels: N integers >= 0.
      hashes: N, of the files: images with the same bytes are never parted, and groups
        that share one count as one.
      fractions: shares of training, validation and test, > 0, sum 1; or of the first
        two where the test images are given. The default is the paper's.
      seed: another seed is another division; the same arguments give the same one.
      level: `group` never divides a group. `image` ignores groups, which is probably
        what the paper did.

    Returns:
      `str[N]`, each of `SPLITS`.

    Raises:
      UserError: bad fractions or level, or a split would be empty.
    """
    if level not in LEVELS:
        raise UserError(f"split level {level!r} is none of {', '.join(LEVELS)}")
    valid = len(fractions) in (2, 3) and min(fractions) > 0
    if not valid or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"split fractions {tuple(fractions)} are not two or three positive numbers "
            "that sum to 1"
        )
    labels = np.asarray(labels)
    units = [str(index) for index in range(len(labels))] if level == "image" else groups
    if hashes is not None:
        units = join_identical(units, hashes)
    members: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    strata: dict[int, list[list[int]]] = {}
    for indices in members.values():
        commonest = int(np.bincount(labels[indices]).argmax())
        strata.setdefault(commonest, []).append(indices)

    rng = np.random.default_rng(seed)
    result = np.full(len(labels), "", "<U10")
    for label in sorted(strata):
        stratum = strata[label]
        missing = np.array(fractions) * sum(len(indices) for indices in stratum)
        for position in rng.permutation(len(stratum)):
            neediest = int(np.argmax(missing))
            result[stratum[position]] = SPLITS[neediest]
            missing[neediest] -= len(stratum[position])
    for split in SPLITS[: len(fractions)]:
        if split not in result:
            raise UserError(
                f"the {split} split is empty: {len(members)} {level}(s) cannot be "
                f"divided {', '.join(f'{share:.3g}' for share in fractions)}; add "
                "images or change data.split_fractions"
            )
    return result


def join_identical(groups: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """Groups for `assign` in which byte-identical files never part.

    Groups that share a file become one, named after one of them.
    """
    parent = {group: group for group in groups}

    def find(group):
        while parent[group] != group:
            group = parent[group]
        return group

    first: dict[str, str] = {}
    for group, digest in zip(groups, hashes, strict=True):
        other = first.setdefault(digest, group)
        parent[find(group)] = find(other)
    return [find(group) for group in groups]


def shared_with_train(groups: Sequence[str], split: Iterable[str]) -> int:
    """How many test images share a group with a training image: 0 is no leak."""
    pairs = list(zip(groups, split, strict=True))
    trained = {group for group, name in pairs if name == "train"}
    return sum(name == "test" and group in trained for group, name in pairs)


def refuse_leaks(rows: Iterable[Row], *, groups: bool = True) -> None:
    """Checks that no two splits share a patient or a film.

    Args:
      rows: of one division.
      groups: False where only films count, as with `level="image"`.

    Raises:
      UserError: two splits share a group, or a file of the same bytes.
    """
    fields = {"sha256": "identical films such as"} | (
        {"group": "films of one group such as"} if groups else {}
    )
    for field, what in fields.items():
        first: dict[str, Row] = {}
        for row in rows:
            other = first.setdefault(getattr(row, field), row)
            if other.split != row.split:
                raise UserError(
                    f"{what} {other.path} and {row.path} are in two splits, "
                    f"{other.split} and {row.split}: figures would be optimistic; "
                    "remove one of them, or divide the images anew"
                )


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes a split file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    csv_file.write(path, [Row._fields, *rows])


def read(path: pathlib.Path) -> list[Row]:
    """Inverse of `write`.

    Raises:
      UserError: not a split file, or one of the splits is empty.
    """
    # A spreadsheet may have put a byte order mark first.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            header, *lines = list(csv.reader(file)) or [[]]
        except csv.Error:  # a cell of more than 128 KiB
            header, lines = [], []
    fields = len(Row._fields)
    if tuple(header) != Row._fields or any(
        len(line) != fields or line[-1] not in SPLITS for line in lines
    ):
        raise UserError(
            f"{path} is not a split file with the columns {','.join(Row._fields)}: "
            "restore it, or train anew in another folder"
        )
    empty = set(SPLITS) - {line[-1] for line in lines}
    if empty:
        raise UserError(f"{path} gives no image to {', '.join(sorted(empty))}")
    return [Row(*line) for line in lines]


def recall(path: pathlib.Path, rows: Sequence[Row]) -> np.ndarray:
    """The splits that a file gives to the images at hand.

    Args:
      path: of a split file; `files.UNREADABLE` lies beside it.
      rows: N images as they are now; their `split` is ignored.

    Returns:
      `str[N]` in the order of `rows`, empty for those that were not readable then.

    Raises:
      UserError: the images are not those of the file, or changed since.
    """
    saved = {row.path: row for row in read(path)}
    left_out: set[str] = set()
    beside = path.with_name(files.UNREADABLE)
    if beside.exists() and any(row.path not in saved for row in rows):
        found = csv_tables.parse(beside.read_bytes(), ("path",), name=str(beside))
        left_out = {row["path"] for row in found} - saved.keys()
    # Never "delete the file": what is beside it was trained by this division.
    remedy = "restore the images, or train anew in another folder"
    for row in rows:
        if row.path in left_out:
            continue
        if row.path not in saved:
            raise UserError(
                f"{path} does not list {row.path}: take the image out if it is new, "
                "restore the file if it was edited, or train anew in another folder"
            )
        for field in ("sha256", "label", "group"):
            old, new = getattr(saved[row.path], field), getattr(row, field)
            if old != new:
                raise UserError(
                    f"{field} of {row.path} was {old} in {path} and is {new} now: "
                    f"{remedy}"
                )
    lost = sorted(saved.keys() - {row.path for row in rows})
    if lost:
        raise UserError(
            f"{path} lists {len(lost)} image(s) that are not there or not readable "
            f"now, the first {lost[0]}: {remedy}"
        )
    return np.array(["" if r.path in left_out else saved[r.path].split for r in rows])
