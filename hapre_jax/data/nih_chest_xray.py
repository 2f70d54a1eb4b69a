"""NIH ChestX-ray14: 112,120 chest radiographs of 30,805 patients of all ages.

National Institutes of Health Clinical Center. Wang, Peng, Lu, Lu, Bagheri, Summers:
"ChestX-ray8: Hospital-Scale Chest X-Ray Database and Benchmarks on Weakly-Supervised
Classification and Localization of Common Thorax Diseases", CVPR 2017. Its use is not
restricted; the Clinical Center asks to be named, cited and linked to:
https://nihcc.app.box.com/v/ChestXray-NIHCC. The archives `images_*.tar.gz` have to be
extracted.

    images_001/images/<patient>_<film>.png    in any folders, .png or resized as .jpg
    Data_Entry_2017_v2020.csv                 or, before 2020, Data_Entry_2017.csv
    BBox_List_2017.csv                        optional
    train_val_list.txt, test_list.txt         optional, but both

                   films
    No Finding    60,361     normal
    Pneumonia      1,431     pneumonia, whatever else is found
    others        50,328     left out

Traps:

* Labels were mined from the text of reports. That of pneumonia is among the noisiest.
* Films of one patient are many, 3.6 in the mean: the group is the patient.
* AP films are taken of those too ill to stand: the view tells of the label.
* Names of columns hold a comma: `OriginalImage[Width,Height]` is two columns, and the
  lines of some files end in empty ones. Columns are found by name.
* Boxes were drawn on few films: 120 of pneumonia. They are in pixels of the published
  1,024, whatever the size of the copy at hand.
* RSNA's films (`hapre_jax.data.rsna_pneumonia`) are some of these under other names:
  never train on one collection and test on the other.
"""

import pathlib
import re
from collections.abc import Set

import numpy as np

from hapre_jax.data import csv_tables, dataset, files, film_tables, reader
from hapre_jax.errors import UserError

CLASSES = ("normal", "pneumonia")
# How many of each class the two lists hold has not been published.
OFFICIAL_COUNTS = {"all": (60361, 1431)}

_NORMAL, _PNEUMONIA = range(2)
_SIDE = 1024  # pixels of the published films, in which boxes are given
_STEM = re.compile(r"\d{8}_\d{3}")
_ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_ENTRY = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_BOXES = "BBox_List_2017.csv"
_CORNER = ("Bbox [x", "y", "w", "h]")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


def source(root: str) -> dataset.Source:
    """The films under a root that show pneumonia or nothing, with boxes of pneumonia.

    A record's group is its patient. It is officially `train` or `test` where the lists
    are there and name it.

    Args:
      root: a folder that holds the films, or a zip of them. The CSV files and the lists
        lie anywhere in it, or beside the zip.

    Raises:
      UserError: no entries, entries that contradict each other or the names of the
        films, no film that has an entry, one of the lists without the other, a patient
        in both, or a box that is none.
    """
    tree = files.open_tree(root)
    entries = _read_entries(tree)
    labels = {
        stem: label
        for stem, entry in entries.items()
        if (label := parse_findings(entry["Finding Labels"])) is not None
    }
    names = [name for name in tree.names() if _STEM.fullmatch(_stem(name))]
    found = film_tables.find_films(tree, names, wanted=labels, known=entries)
    official = _read_lists(tree, found.keys())
    records = [
        dataset.Record(
            name,
            labels[stem],
            group=_patient(stem),
            view=entries[stem]["View Position"],
            official=official.get(stem, ""),
        )
        for stem, name in found.items()
    ]
    boxes = _read_boxes(tree)
    lesions = {found[stem]: np.stack(boxes[stem]) for stem in boxes if stem in found}
    read = reader.FilmReader(tree, records, lesions=lesions)
    return dataset.Source("nih_chest_xray", CLASSES, records, read)


def parse_findings(findings: str) -> int | None:
    """Index into `CLASSES` of findings such as `Edema|Pneumonia`; None for neither."""
    names = findings.split("|")
    if "Pneumonia" in names:
        return _PNEUMONIA
    return _NORMAL if names == ["No Finding"] else None


def parse_box(x: str, y: str, width: str, height: str) -> np.ndarray | None:
    """A box in fractions of the film, clipped to it.

    Args:
      x, y: the upper left corner, in pixels of a film of 1,024.
      width, height: in the same pixels.

    Returns:
      `f32[4]` yxyx in [0, 1]; None if a number is missing or nothing is in the box.
    """
    try:
        left, top = float(x), float(y)
        corners = top, left, top + float(height), left + float(width)
    except ValueError:
        return None
    box = np.clip(np.array(corners, np.float32) / _SIDE, 0, 1)
    return box if (box[:2] < box[2:]).all() else None


def _read_entries(tree: files.Tree) -> dict[str, dict[str, str]]:
    """From the stem of a film to its row."""
    for table in _ENTRIES:
        rows = csv_tables.read(tree, table, _ENTRY)
        if rows is not None:
            break
    else:
        raise UserError(
            f"{tree.root} holds neither {' nor '.join(_ENTRIES)}, which label the "
            "films: download one from https://nihcc.app.box.com/v/ChestXray-NIHCC"
        )
    entries: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row["Image Index"]
        stem, patient = _stem(name), row["Patient ID"]
        if not _STEM.fullmatch(stem):
            raise UserError(
                f"{table} lists {name!r}, which is no name of a film: "
                "00000001_000.png is one"
            )
        if patient.zfill(8) != _patient(stem):
            raise UserError(
                f"{table} says that {name} shows patient {patient!r}; its name says "
                f"{_patient(stem)}"
            )
        if entries.setdefault(stem, row) != row:
            raise UserError(
                f"{table} has two rows for {name} that contradict each other: "
                f"{list(entries[stem].values())} and {list(row.values())}"
            )
    return entries


def _read_lists(tree: files.Tree, stems: Set[str]) -> dict[str, str]:
    """From the stems of films to `train` or `test`, where the lists say so."""
    lists = {split: film_tables.read(tree, name) for split, name in _LISTS.items()}
    both = " and ".join(_LISTS.values())
    missing = [_LISTS[split] for split, data in lists.items() if data is None]
    if len(missing) == 1:
        raise UserError(f"{tree.root} holds no {missing[0]}: give both {both}, or none")
    official: dict[str, str] = {}
    split_of: dict[str, str] = {}  # of a patient
    for split, data in lists.items():
        listed = (data or b"").decode("utf-8-sig", "replace").split()
        for stem in sorted(set(map(_stem, listed)) & stems):
            if split_of.setdefault(_patient(stem), split) != split:
                raise UserError(
                    f"patient {_patient(stem)} is in both {both}: the published lists "
                    "share none"
                )
            official[stem] = split
    return official


def _read_boxes(tree: files.Tree) -> dict[str, list[np.ndarray]]:
    """From the stem of a film to its boxes of pneumonia."""
    boxes: dict[str, list[np.ndarray]] = {}
    rows = csv_tables.read(tree, _BOXES, ("Image Index", "Finding Label", *_CORNER))
    for row in rows or ():
        if row["Finding Label"] != "Pneumonia":
            continue
        corner = [row[column] for column in _CORNER]
        box = parse_box(*corner)
        if box is None:
            raise UserError(
                f"{_BOXES} gives {row['Image Index']} the box {','.join(corner)}: "
                f"expected x,y,w,h inside {_SIDE} x {_SIDE} pixels"
            )
        boxes.setdefault(_stem(row["Image Index"]), []).append(box)
    return boxes


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).stem


def _patient(stem: str) -> str:
    return stem.partition("_")[0]
