"""Whether the class of a film can be told without looking at it, and other traps.

Only headers of the original files are read, never pixels: what tells classes apart here
is a shortcut that a network may take too. `audit_report` says what follows.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageMode

from hapre_jax.data import dataset, dicom, files, images, reader, splits
from hapre_jax.errors import UserError

# Properties that depend on the pixels too: a difference in them may be the disease's.
# All others are of the shape and kind of the files.
OF_PIXELS = {"file size", "bytes a pixel", "view"}

_FOLDS = 5
_SEEDS = range(5)  # of the image-level divisions


class Geometry(NamedTuple):
    """What the header of a file says."""

    width: int  # as stored, before EXIF turns the film upright
    height: int
    file_bytes: int
    channels: int  # 1 gray or palette, 3 color, 4 CMYK or with transparency
    bits: int  # of a sample; of DICOM those used, such as 10 or 12
    has_exif: bool
    kind: str  # Pillow's name of the format, or DICOM


@dataclasses.dataclass(frozen=True)
class Copies:
    """Sets of byte-identical files, each the names of its files."""

    sets: tuple[tuple[str, ...], ...]
    of_several_classes: tuple[tuple[str, ...], ...]
    of_several_groups: tuple[tuple[str, ...], ...]
    of_several_splits: tuple[tuple[str, ...], ...]  # of the official ones


@dataclasses.dataclass(frozen=True)
class Groups:
    """Patients, or what else the source never divides."""

    number: int
    of_several_films: float  # share of the groups
    of_several_classes: float
    # Share of the test images whose group is trained on as well: where single images
    # are divided at random, and in the official splits. None: no such splits.
    image_level_leak: float | None
    official_leak: float | None


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `examine` found, of the readable films."""

    name: str  # of the source
    classes: tuple[str, ...]
    counts: tuple[int, ...]  # by class
    official_counts: dict[str, tuple[int, ...]]  # the same of each official split
    unreadable: dict[str, str]  # name of a file to the reason
    view: str  # the commonest, such as PA; empty where the source says none
    # By property, of the first class against the rest: below 0.5 where it has less.
    # That of the view is whether it is the commonest.
    aucs: dict[str, float]
    # Of each class against the rest, by a classifier of shape and kind, on groups it
    # was not fitted to; None if they are too few.
    together: tuple[float, ...] | None
    chance: float  # an AUC that so small a collection may have without a shortcut
    copies: Copies
    groups: Groups


class _File(NamedTuple):
    record: dataset.Record
    geometry: Geometry
    sha256: str


def geometry(encoded: bytes, *, name: str) -> Geometry:
    """Reads the header of an image file.

    Raises:
      UserError: names the file, which is no image, damaged, smaller than training
        accepts, or needs pydicom.
    """
    images.ignore_warnings_of_files()
    read = _dicom_geometry if dicom.is_dicom(encoded, name) else _image_geometry
    try:
        header = read(encoded, name)
        if min(header.width, header.height) < images.MIN_SIDE:
            raise ValueError(f"{header.width} x {header.height} pixels are too few")
        return header
    except UserError:
        raise
    except Exception as error:  # of many kinds: see images.open_gray
        reason = images.reason(error)
        raise UserError(f"{name} cannot be read: {reason}") from error


def examine(
    source: dataset.Source,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 2,
) -> Audit:
    """Reads the headers of all films; damage behind a header is not noticed.

    Args:
      source: of original files.
      progress: called with the number of files read and their total.
      threads: that read.

    Raises:
      UserError: the source has no original files, a class has no readable film, or
        scikit-learn is not installed.
    """
    if not isinstance(source.read, reader.FilmReader):
        raise UserError(
            f"the films of {source.name!r} are no original files, which an audit looks "
            "at: give the folder or the zip of the originals"
        )
    try:
        from sklearn import metrics
    except ImportError as error:
        raise UserError(
            "an audit needs scikit-learn: pip install 'hapre_jax[audit]'"
        ) from error
    found, unreadable = _read_all(source.read.tree, source.records, progress, threads)
    records = [file.record for file in found]
    labels = np.array([record.label for record in records], np.int64)
    counts = _counts(records, len(source.classes))
    if 0 in counts:
        reason = f"; for one, {next(iter(unreadable.values()))}" if unreadable else ""
        empty = source.classes[counts.index(0)]
        raise UserError(f"class {empty!r} has no readable film{reason}")
    # A copy of a film that was fitted to is no new film, whatever its group.
    groups = np.array(
        splits.join_identical([r.group for r in records], [f.sha256 for f in found])
    )
    values = _properties([file.geometry for file in found])
    view = _commonest_view(records)
    if view:
        values["view"] = np.array([record.view == view for record in records])
    of_files = np.stack([values[k] for k in values if k not in OF_PIXELS], axis=1)
    return Audit(
        name=source.name,
        classes=source.classes,
        counts=counts,
        official_counts={
            split: _counts([r for r in records if r.official == split], len(counts))
            for split in splits.SPLITS
            if split in {record.official for record in records}
        },
        unreadable=unreadable,
        view=view,
        aucs={
            name: float(metrics.roc_auc_score(labels == 0, column))
            for name, column in values.items()
        },
        together=_classify(of_files, labels, groups),
        chance=_chance(len({*groups[labels == 0]}), len({*groups[labels > 0]})),
        copies=_find_copies(found),
        groups=_describe_groups(records),
    )


def _dicom_geometry(encoded: bytes, name: str) -> Geometry:
    film = dicom.read_header(encoded, name=name)
    columns, rows, bits = int(film.Columns), int(film.Rows), int(film.BitsStored)
    return Geometry(columns, rows, len(encoded), 1, bits, False, "DICOM")


def _image_geometry(encoded: bytes, name: str) -> Geometry:
    with Image.open(io.BytesIO(encoded), formats=images.FORMATS) as image:
        return Geometry(
            *image.size,
            len(encoded),
            len(image.getbands()),
            8 * np.dtype(ImageMode.getmode(image.mode).typestr).itemsize,
            "exif" in image.info,  # `getexif` would decode a PNG
            str(image.format),
        )


def _read_all(
    tree: files.Tree,
    records: Sequence[dataset.Record],
    progress: Callable[[int, int], None] | None,
    threads: int,
) -> tuple[list[_File], dict[str, str]]:
    def attempt(record):
        try:
            encoded = tree.read(record.name)
            header = geometry(encoded, name=record.name)
        except UserError as error:
            return error
        return _File(record, header, hashlib.sha256(encoded).hexdigest())

    found, unreadable = [], {}
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for index, result in enumerate(pool.map(attempt, records)):
            if isinstance(result, UserError):
                unreadable[records[index].name] = str(result)
            else:
                found.append(result)
            if progress:
                progress(index + 1, len(records))
    finally:
        pool.shutdown(cancel_futures=True)
    return found, unreadable


def _counts(records: Sequence[dataset.Record], classes: int) -> tuple[int, ...]:
    by_label = collections.Counter(record.label for record in records)
    return tuple(by_label[label] for label in range(classes))


def _commonest_view(records: Sequence[dataset.Record]) -> str:
    views = collections.Counter(record.view for record in records if record.view)
    return max(views, key=views.__getitem__, default="")


def _properties(headers: Sequence[Geometry]) -> dict[str, np.ndarray]:
    """`f64[N]` of each property."""
    columns = np.array([header[:-1] for header in headers], np.float64).T
    width, height, size, channels, bits, exif = columns
    return {
        "aspect ratio": width / height,
        "width": width,
        "height": height,
        "area": width * height,
        "channels": channels,
        "bits": bits,
        "EXIF": exif,
        "JPEG": np.array([h.kind in ("JPEG", "MPO") for h in headers], np.float64),
        "file size": size,
        "bytes a pixel": size / (width * height),
    }


def _classify(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[float, ...] | None:
    """Cross-validated AUC of each class against the rest; see `Audit.together`."""
    from sklearn import ensemble, metrics, model_selection

    classes = range(labels.max() + 1)
    folds = min(_FOLDS, *(len({*groups[labels == label]}) for label in classes))
    if folds < 2:
        return None
    aucs = []
    division = model_selection.StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for train, test in division.split(values, labels, groups):
        # A group of many films may leave a class out of a fold.
        if not {*classes} == {*labels[train]} == {*labels[test]}:
            continue
        # Small trees: larger ones learn single films by heart. Small leaves, as leaves
        # of 20 films, the default, see nothing in a small collection.
        model = ensemble.HistGradientBoostingClassifier(
            max_iter=50, max_leaf_nodes=6, min_samples_leaf=5, random_state=0
        )
        scores = model.fit(values[train], labels[train]).predict_proba(values[test])
        aucs.append(
            [metrics.roc_auc_score(labels[test] == k, scores[:, k]) for k in classes]
        )
    # Averaged over folds, as scores of several models have no common scale.
    return tuple(np.mean(aucs, axis=0).tolist()) if aucs else None


def _chance(first: int, rest: int) -> float:
    """Three standard deviations above 0.5, of Mann and Whitney, for so many groups.

    Not films, since those of one patient resemble each other.
    """
    return min(1.0, 0.5 + 3 * math.sqrt((first + rest + 1) / (12 * first * rest)))


def _find_copies(found: Sequence[_File]) -> Copies:
    by_hash = collections.defaultdict(list)
    for file in found:
        by_hash[file.sha256].append(file.record)

    def sets_that_differ(field):
        return tuple(
            tuple(record.name for record in records)
            for records in by_hash.values()
            # An empty field says nothing.
            if len({getattr(record, field) for record in records} - {""}) > 1
        )

    return Copies(*map(sets_that_differ, ("name", "label", "group", "official")))


def _describe_groups(records: Sequence[dataset.Record]) -> Groups:
    names = [record.group for record in records]
    labels = [record.label for record in records]
    official = [record.official for record in records]
    films = collections.Counter(names)
    classes = collections.Counter(
        name for name, _ in {*zip(names, labels, strict=True)}
    )

    def several(counts):
        return sum(count > 1 for count in counts.values()) / len(counts)

    def leak(split):
        return splits.shared_with_train(names, split) / list(split).count("test")

    def image_level(seed):
        return splits.assign(names, labels, seed=seed, level="image")

    try:
        image_level_leak = float(np.mean([leak(image_level(seed)) for seed in _SEEDS]))
    except UserError:  # too few images for three splits
        image_level_leak = None
    return Groups(
        number=len(films),
        of_several_films=several(films),
        of_several_classes=several(classes),
        image_level_leak=image_level_leak,
        official_leak=leak(official) if {"train", "test"} <= {*official} else None,
    )
