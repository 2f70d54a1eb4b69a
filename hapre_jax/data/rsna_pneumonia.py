"""RSNA Pneumonia: chest radiographs with radiologists' boxes around lung opacities.

Radiological Society of North America, Kaggle challenge of 2018, stage 2. Shih et al.:
"Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert
Annotations of Possible Pneumonia", Radiology: Artificial Intelligence 1 (2019),
doi:10.1148/ryai.2019180041. RSNA allows research, education and other use, commercial
or not, to those who name it as its terms of use say; Kaggle asks to accept its rules.
Known on Kaggle as rsna-pneumonia-detection-challenge.

    stage_2_train_images/<patientId>.dcm
    stage_2_train_labels.csv             patientId,x,y,width,height,Target
    stage_2_detailed_class_info.csv      patientId,class

    class                           films  Target  labels="class"  labels="target"
    Normal                          8,851       0  normal          normal
    No Lung Opacity / Not Normal   11,821       0  left out        normal
    Lung Opacity                    6,012       1  pneumonia       pneumonia
    all                            26,684          14,863          26,684

Traps:

* Both CSV files have a row for each box, 30,227 in all, and one for a film without:
  joined before duplicates are removed, they multiply.
* `Target` 0 is not healthy: more than half of these films show something else.
* The view gives the label away: 38 % of the AP films, which are taken of those too ill
  to stand, are positive, and 9 % of the PA films. Only the DICOM header tells it.
* patientId is an id of the film. The films are some of NIH's (ChestX-ray14), several
  of many patients; whose they are the kit does not tell, so films of one patient can
  be divided between training and test.
* For the same reason never train on NIH's films and test on these, or conversely.
* The labels of `stage_2_test_images` were never published: the folder is ignored.
"""

import concurrent.futures
import importlib
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hapre_jax.data import (
    csv_tables,
    dataset,
    dicom,
    files,
    film_tables,
    images,
    nih_chest_xray,
    reader,
)
from hapre_jax.errors import UserError

CLASSES = ("normal", "pneumonia")
OFFICIAL_COUNTS = {
    "class": {"train": (8851, 6012)},
    "target": {"train": (20672, 6012)},
}

_ZIP = "rsna-pneumonia-detection-challenge.zip"
_BOXES = "stage_2_train_labels.csv"
_CORNER = ("x", "y", "width", "height")
_CLASSES = "stage_2_detailed_class_info.csv"
_OPACITY = "Lung Opacity"
_LABELS = {"Normal": 0, _OPACITY: 1}
_NEITHER = "No Lung Opacity / Not Normal"
_TEST_FOLDER = "stage_2_test_images"
_THREADS = 8  # they wait for a disk or a network


def source(root: str, labels: str = "class") -> dataset.Source:
    """The training films under a root, with boxes around opacities.

    A record's group is its patientId, which is an id of the film.

    Args:
      root: a folder that holds `stage_2_train_images` or Kaggle's zip, or the zip.
      labels: `class` tells normal films from opacities and leaves out what is neither;
        `target` has all films, and calls normal what shows no opacity. Only `class`
        needs `stage_2_detailed_class_info.csv`.

    Raises:
      UserError: unknown `labels`, a CSV file is missing, or has other columns, or
        contradicts itself or the other; none of the films is there; pydicom is not
        installed.
    """
    if labels not in OFFICIAL_COUNTS:
        accepted = ", ".join(OFFICIAL_COUNTS)
        raise UserError(f"labels {labels!r} of RSNA is none of {accepted}")
    tree = files.open_tree(root, zip_names=(_ZIP,))
    boxes = _read_boxes(tree)
    if labels == "class":
        label_of = _read_classes(tree, boxes)
    else:
        label_of = {film: int(bool(drawn)) for film, drawn in boxes.items()}
    names = [name for name in tree.names() if _is_training_film(name)]
    found = film_tables.find_films(tree, names, wanted=label_of, known=boxes)
    views = _read_views(tree, found.values())
    records = [
        dataset.Record(name, label_of[film], group=film, view=view, official="train")
        for (film, name), view in zip(found.items(), views, strict=True)
    ]
    lesions = {found[film]: np.stack(boxes[film]) for film in found if boxes[film]}
    read = reader.FilmReader(tree, records, lesions=lesions)
    return dataset.Source("rsna_pneumonia", CLASSES, records, read)


def _is_training_film(name: str) -> bool:
    is_dicom = name.lower().endswith(dicom.EXTENSIONS)
    return is_dicom and _TEST_FOLDER not in name.split("/")


def _read_boxes(tree: files.Tree) -> dict[str, list[np.ndarray]]:
    """From the id of a film to its boxes; none where `Target` is 0."""
    boxes: dict[str, list[np.ndarray]] = {}
    for row in _read_table(tree, _BOXES, ("patientId", *_CORNER, "Target")):
        film, target = row["patientId"], row["Target"]
        corner = [row[column] for column in _CORNER]
        box = nih_chest_xray.parse_box(*corner)
        if (target, any(corner), box is None) not in (
            ("0", False, True),
            ("1", True, False),
        ):
            raise UserError(
                f"{_BOXES} gives {film} the box {','.join(corner)!r} and the Target "
                f"{target!r}: 1 has a box inside 1024 x 1024 pixels, 0 has none"
            )
        drawn = [] if box is None else [box]
        if film in boxes and bool(boxes[film]) != bool(drawn):
            raise UserError(f"{_BOXES} gives {film} both Targets, 0 and 1")
        boxes.setdefault(film, []).extend(drawn)
    return boxes


def _read_classes(
    tree: files.Tree, boxes: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, int]:
    """From the ids of the films that are of a class to its index."""
    classes: dict[str, str] = {}
    for row in _read_table(tree, _CLASSES, ("patientId", "class")):
        film, name = row["patientId"], row["class"]
        if name not in (*_LABELS, _NEITHER):
            accepted = ", ".join((*_LABELS, _NEITHER))
            raise UserError(
                f"{_CLASSES} gives {film} the class {name!r}: expected {accepted}"
            )
        if classes.setdefault(film, name) != name:
            raise UserError(
                f"{_CLASSES} gives {film} two classes, {classes[film]} and {name}"
            )
    in_one_only = classes.keys() ^ boxes.keys()
    if in_one_only:
        film = min(in_one_only)
        here, there = (_CLASSES, _BOXES) if film in classes else (_BOXES, _CLASSES)
        raise UserError(
            f"{film} is in {here} but not in {there}: take both from one download"
        )
    for film, name in classes.items():
        if (name == _OPACITY) != bool(boxes[film]):
            raise UserError(
                f"{_CLASSES} gives {film} the class {name}, but {_BOXES} the Target "
                f"{int(bool(boxes[film]))}"
            )
    return {film: _LABELS[name] for film, name in classes.items() if name != _NEITHER}


def _read_table(
    tree: files.Tree, name: str, columns: Sequence[str]
) -> list[dict[str, str]]:
    rows = csv_tables.read(tree, name, columns)
    if rows is None:
        raise UserError(
            f"{tree.root} holds no {name}: it comes with the films, in Kaggle's {_ZIP}"
        )
    return rows


def _read_views(tree: files.Tree, names: Iterable[str]) -> list[str]:
    """What the headers of films say of the view, "" where they cannot be read."""
    try:
        pydicom = importlib.import_module("pydicom")
    except ImportError as error:
        raise UserError(
            "RSNA's films are DICOM files, which need pip install 'hapre_jax[dicom]'"
        ) from error

    images.ignore_warnings_of_files()

    def read(name):
        try:
            # Of a file in a folder, the header is read alone.
            in_folder = tree.root.is_dir()
            file = tree.root / name if in_folder else io.BytesIO(tree.read(name))
            header = pydicom.dcmread(
                file, stop_before_pixels=True, specific_tags=["ViewPosition"]
            )
            return str(header.get("ViewPosition") or "")
        except Exception:  # many kinds; the film is refused by name when it is read
            return ""

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, names))
