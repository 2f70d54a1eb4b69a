"""Whether the class of a film can be told without looking at it, and other traps.

Only headers of the original files are read, never pixels: what tells classes apart here
is a shortcut that a network may take too.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib
import io
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import rich.markup
import rich.table
from PIL import Image, ImageMode

from hapre_jax import errors
from hapre_jax.data import dataset, dicom, files, reader, splits

# Areas under the ROC curve. At 0.8 four of five pairs of films are ranked right, as
# published classifiers do; at 0.65 two of three, at 0.5 one of two.
STRONG, WEAK = 0.8, 0.65
IMBALANCE = 3  # from here on, always answering the largest class looks accurate
FEW_FILMS = 50  # a fifth is tested: one film more or less is 10 points of recall
LEAK = 0.05  # a smaller share of the test images hardly moves a score
FOLDS = 5
SEEDS = range(5)  # of the image-level divisions

_JUDGE = "judge on films of other sources as well."
_UNSEEN = {"channels", "bits", "EXIF"}
# These depend on the pixels too: they are listed, but prove nothing by themselves.
_DETAIL = {"file size", "bytes a pixel"}
_ADVICE = (  # by what a network still sees of the properties
    (
        {"aspect ratio"},
        "--data.geometry cover is the only geometry that hides it from a network.",
    ),
    (
        {"width", "height", "area", "JPEG"},
        "resizing hides it from a network, but not the sharpness and the traces of "
        f"compression that come with it; {_JUDGE}",
    ),
    (
        _DETAIL,
        "the classes differ in detail or compression, be it by their devices or by the "
        f"disease itself; {_JUDGE}",
    ),
    (
        _UNSEEN,
        "hidden from a network here, as films are read as one channel of 8 bits and "
        "EXIF only turns them upright; other programs may show it.",
    ),
)


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
    # By property, of the first class against the rest: below 0.5 where it has less.
    aucs: dict[str, float]
    # Of each class against the rest, by a classifier of all properties but those that
    # depend on the pixels, on groups it was not fitted to; None if they are too few.
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
    read = _dicom_geometry if dicom.is_dicom(encoded, name) else _image_geometry
    try:
        header = read(encoded)
        if min(header.width, header.height) < reader.MIN_SIDE:
            raise ValueError(f"{header.width} x {header.height} pixels are too few")
        return header
    except ImportError as error:
        raise errors.UserError(
            f"{name} is a DICOM file, which needs pip install 'hapre_jax[dicom]'"
        ) from error
    except Exception as error:  # of many kinds: see images.open_gray
        reason = "not an image" if "BytesIO" in str(error) else error
        raise errors.UserError(f"{name} cannot be read: {reason}") from error


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
        raise errors.UserError(
            f"the films of {source.name!r} are no original files, which an audit looks "
            "at: give the folder or the zip of the originals"
        )
    try:
        from sklearn import metrics
    except ImportError as error:
        raise errors.UserError(
            "an audit needs scikit-learn: pip install 'hapre_jax[audit]'"
        ) from error
    found, unreadable = _read_all(source.read.tree, source.records, progress, threads)
    records = [file.record for file in found]
    labels = np.array([record.label for record in records], np.int64)
    counts = _counts(records, len(source.classes))
    if 0 in counts:
        reason = f"; for one, {next(iter(unreadable.values()))}" if unreadable else ""
        empty = source.classes[counts.index(0)]
        raise errors.UserError(f"class {empty!r} has no readable film{reason}")
    # A copy of a film that was fitted to is no new film, whatever its group.
    groups = np.array(
        splits.join_identical([r.group for r in records], [f.sha256 for f in found])
    )
    values = _properties([file.geometry for file in found])
    shape = np.stack([values[name] for name in values if name not in _DETAIL], axis=1)
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
        aucs={
            name: float(metrics.roc_auc_score(labels == 0, column))
            for name, column in values.items()
        },
        together=_classify(shape, labels, groups),
        chance=_chance(len({*groups[labels == 0]}), len({*groups[labels > 0]})),
        copies=_find_copies(found),
        groups=_describe_groups(records),
    )


def to_dict(audit: Audit) -> dict:
    """An audit and its verdict, as JSON has them."""
    return {**dataclasses.asdict(audit), "verdict": verdict(audit)}


def verdict(audit: Audit) -> list[str]:
    """What a researcher should know, in sentences, most serious first."""
    shortcut, others = _say_shortcut(audit), _say_others(audit)
    strongest = max(_best(audit)[1], *map(_strength, audit.aucs.values()))
    found = strongest > _bound(audit)
    return shortcut + others if found else others + shortcut


def tables(audit: Audit) -> list[rich.table.Table]:
    """Class counts, shortcuts, and groups and copies."""
    films = _table(audit.name, "class", "films", "share", *audit.official_counts)
    for label, count in enumerate(audit.counts):
        official = [str(counts[label]) for counts in audit.official_counts.values()]
        share = _percent(count / sum(audit.counts))
        films.add_row(_plain(audit.classes[label]), str(count), share, *official)

    aucs = _table("shortcuts", "property", "AUC", f"in {audit.classes[0]}")
    for name, auc in sorted(audit.aucs.items(), key=lambda item: -_strength(item[1])):
        aucs.add_row(name, f"{_strength(auc):.3f}", _direction(auc))
    aucs.add_section()
    for label, auc in enumerate(audit.together or ()):
        title = f"shape and kind together: {audit.classes[label]}"
        aucs.add_row(_plain(title), f"{auc:.3f}")
    if audit.together and len(audit.classes) > 2:
        aucs.add_row("  mean", f"{np.mean(audit.together):.3f}")
    aucs.add_row("possible by chance", f"{audit.chance:.3f}")

    rest = _table("groups and copies", "", "")
    groups, copies = audit.groups, audit.copies
    for title, value in {
        "groups": str(groups.number),
        "groups of several films": _percent(groups.of_several_films),
        "groups of several classes": _percent(groups.of_several_classes),
        "leak of an image-level split": _percent(groups.image_level_leak),
        "leak of the official split": _percent(groups.official_leak),
        "sets of identical files": str(len(copies.sets)),
        "files in them": str(sum(map(len, copies.sets))),
        "sets of several classes": str(len(copies.of_several_classes)),
        "sets of several groups": str(len(copies.of_several_groups)),
        "sets of several official splits": str(len(copies.of_several_splits)),
        "unreadable files": str(len(audit.unreadable)),
    }.items():
        rest.add_row(title, value)
    return [films, aucs, rest]


def _dicom_geometry(encoded: bytes) -> Geometry:
    pydicom = importlib.import_module("pydicom")
    film = pydicom.dcmread(io.BytesIO(encoded), stop_before_pixels=True)
    sizes = (film.Columns, film.Rows, len(encoded), film.SamplesPerPixel)
    return Geometry(*sizes, film.BitsStored, False, "DICOM")


def _image_geometry(encoded: bytes) -> Geometry:
    with Image.open(io.BytesIO(encoded)) as image:
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
        except errors.UserError as error:
            return error
        return _File(record, header, hashlib.sha256(encoded).hexdigest())

    found, unreadable = [], {}
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for index, result in enumerate(pool.map(attempt, records)):
            if isinstance(result, errors.UserError):
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


def _properties(headers: Sequence[Geometry]) -> dict[str, np.ndarray]:
    """`f64[N]` of each property."""
    columns = np.array([header[:-1] for header in headers], np.float64).T
    width, height, size, channels, bits, exif = columns
    return {  # of equal ones, the first is named
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
    folds = min(FOLDS, *(len({*groups[labels == label]}) for label in classes))
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

    def sets_that(differ):
        return tuple(
            tuple(record.name for record in records)
            for records in by_hash.values()
            if len({differ(record) for record in records}) > 1
        )

    return Copies(
        sets_that(lambda record: record.name),
        sets_that(lambda record: record.label),
        sets_that(lambda record: record.group),
        sets_that(lambda record: record.official),
    )


def _describe_groups(records: Sequence[dataset.Record]) -> Groups:
    names = [record.group for record in records]
    labels = [record.label for record in records]
    official = [record.official for record in records]
    members = collections.defaultdict(list)
    for name, label in zip(names, labels, strict=True):
        members[name].append(label)

    def leak(split):
        return splits.shared_with_train(names, split) / list(split).count("test")

    def image_level(seed):
        return splits.assign(names, labels, seed=seed, level="image")

    try:
        image_level_leak = float(np.mean([leak(image_level(seed)) for seed in SEEDS]))
    except errors.UserError:  # too few images for three splits
        image_level_leak = None
    return Groups(
        len(members),
        sum(len(of_one) > 1 for of_one in members.values()) / len(members),
        sum(len({*of_one}) > 1 for of_one in members.values()) / len(members),
        image_level_leak,
        leak(official) if {"train", "test"} <= {*official} else None,
    )


def _strength(auc: float) -> float:
    return max(auc, 1 - auc)


def _direction(auc: float) -> str:
    return "higher" if auc > 0.5 else "lower" if auc < 0.5 else "-"


def _bound(audit: Audit) -> float:
    """An AUC above is worth a word."""
    return max(WEAK, audit.chance)


def _best(audit: Audit) -> tuple[str, float]:
    """The class that shape and kind of the files tell best, and its AUC."""
    single = max(_strength(a) for name, a in audit.aucs.items() if name not in _DETAIL)
    if not audit.together or single >= max(audit.together):
        return audit.classes[0], single
    label = int(np.argmax(np.round(audit.together, 2)))  # the first of equals
    return audit.classes[label], audit.together[label]


def _say_shortcut(audit: Audit) -> list[str]:
    told, score = _best(audit)
    strengths = {name: _strength(auc) for name, auc in audit.aucs.items()}
    telling = {name for name in strengths if strengths[name] > _bound(audit)}
    shown = telling - _DETAIL
    if score <= _bound(audit):
        small = f", where chance may reach {audit.chance:.2f}"
        said = [
            f"No shortcut found in the shape and kind of the files: AUC {score:.2f}"
            f"{small if audit.chance > WEAK else ''}."
        ]
    else:
        if shown and shown <= _UNSEEN:
            effect = "but by nothing that a network sees."
        elif score < STRONG:
            effect = "so a network can score a little without looking at the lungs."
        else:
            effect = "so a network can score without looking at the lungs."
        best = max(
            (n for n in strengths if n not in _DETAIL), key=strengths.__getitem__
        )
        said = [
            f"The shape and kind of the files alone separate {told} from the rest with "
            f"AUC {score:.2f}, {effect} The strongest single property is {best}, AUC "
            f"{strengths[best]:.2f}."
        ]
    for names, advice in _ADVICE:
        listed = [
            f"{name} (AUC {strengths[name]:.2f}, {_direction(audit.aucs[name])} in "
            f"{audit.classes[0]})"
            for name in strengths
            if name in names & telling
        ]
        if listed:
            said.append(f"By {', '.join(listed)}: {advice}")
    return said


def _say_others(audit: Audit) -> list[str]:
    copies, groups = audit.copies, audit.groups
    sizes = sorted(zip(audit.counts, audit.classes, strict=True))
    (fewest, smallest), (most, largest) = sizes[0], sizes[-1]
    few = [f"{name} ({count})" for count, name in sizes if count < FEW_FILMS]
    doubtful = [name for one in copies.of_several_classes for name in one]
    said = (
        (
            doubtful,
            f"{len(copies.of_several_classes)} set(s) of byte-identical files lie in "
            "several classes, of which at most one is right: correct or remove "
            f"{_some(doubtful)}.",
        ),
        (
            copies.of_several_splits,
            f"{len(copies.of_several_splits)} set(s) of byte-identical files lie in "
            "several official splits: scores on these are optimistic.",
        ),
        (
            groups.official_leak,
            f"{_percent(groups.official_leak)} of the official test images belong to a "
            "group of the official training split: scores on them are optimistic.",
        ),
        (
            (groups.image_level_leak or 0) >= LEAK,
            "Dividing single images at random would put "
            f"{_percent(groups.image_level_leak)} of the test images in a group that "
            "is trained on: split by group, the default.",
        ),
        (
            copies.of_several_groups,
            f"{len(copies.of_several_groups)} set(s) of byte-identical files belong to "
            "several groups: kept in one split here, but not by every program.",
        ),
        (
            not groups.of_several_films,
            "Each film is a group of its own: if patients have several, name them in "
            "groups.csv, or their films end up in training and test.",
        ),
        (
            few,
            f"Fewer than {FEW_FILMS} films of {', '.join(few)}: one test film more or "
            "less moves the recall by 10 points. Repeat with several seeds.",
        ),
        (
            most > IMBALANCE * fewest,
            f"There are {most / fewest:.1f} times as many films of {largest} as of "
            f"{smallest}: judge by macro-F1, not by accuracy.",
        ),
        (
            audit.together is None,
            "Too few groups in a class for a classifier of the file properties: they "
            "were judged one by one only.",
        ),
        (
            audit.unreadable,
            f"{len(audit.unreadable)} file(s) cannot be read and were left out: "
            f"{_some(list(audit.unreadable))}.",
        ),
    )
    return [sentence for holds, sentence in said if holds]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _plain(text: str) -> str:
    return rich.markup.escape(text)  # a class may be called [a]


def _table(title: str, *columns: str) -> rich.table.Table:
    table = rich.table.Table(title=_plain(title))
    for index, column in enumerate(columns):
        table.add_column(_plain(column), justify="right" if index else "left")
    return table
