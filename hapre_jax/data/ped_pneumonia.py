"""Ped-Pneumonia: chest radiographs of children of one to five years.

Guangzhou Women and Children's Medical Center. Kermany, Zhang, Goldbaum: "Labeled
Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification", Mendeley
Data v2, 2018, doi:10.17632/rscbjbr9sj.2; described in Kermany et al., Cell 172 (2018).
Licence CC BY 4.0. Known on Kaggle as `chest_xray` or chest-xray-pneumonia.

    chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg

            normal  bacterial  viral
    train    1,341      2,530  1,345
    val          8          8      0
    test       234        242    148
    all      1,583      2,780  1,493     5,856 files

Traps:

* Bacterial or viral is said by the file name only; 144 names break its pattern.
* The 16 images of `val` cannot choose a model: the three folders are pooled, as the
  counts of the paper imply, and divided anew (`hapre_jax.data.splits`).
* Kaggle's zip holds everything twice, once in `chest_xray/chest_xray`.
* Several films of one child share a number. Numbers count anew for bacterial and viral
  films, so a group is kind and number; an image-level split puts 39 % of the test
  images in a group that is also trained on.
* The shape of a film gives its label away: aspect ratio alone separates normal from
  pneumonia with an AUC of 0.88. `geometry="cover"` hides it. Color films are all
  pneumonia, hence one luma channel.

Lung masks, if any, are PNG files of the same names and sizes under
`chest_xray_lungmasks/{split}/{class}/`: 255 lung, 127 unknown, 0 elsewhere.
"""

import pathlib
import re
from collections.abc import Callable

import numpy as np

from hapre_jax.data import dataset, files, images, reader
from hapre_jax.errors import UserError

CLASSES = ("normal", "bacterial", "viral")
OFFICIAL_COUNTS = {
    "train": (1341, 2530, 1345),
    "validation": (8, 8, 0),
    "test": (234, 242, 148),
}

_FOLDERS = {"NORMAL": {"normal"}, "PNEUMONIA": {"bacteria", "virus"}}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_LABELS = {"normal": 0, "bacteria": 1, "virus": 2}
_MASKS = "chest_xray_lungmasks"

# `person447_virus_921_1`, `NORMAL2-IM-1440-0001-0002` and 142 more have one number
# more than their neighbors.
_PERSON = re.compile(r"(?P<who>person\d+)_(?P<kind>bacteria|virus)(_\d+)+")
_NORMAL = re.compile(r"(?P<who>(NORMAL2-)?IM-\d+)(-\d+)+")
_MENDELEY_V3 = re.compile(r"(?P<who>(?P<kind>BACTERIA|VIRUS|NORMAL)-\d+)(-\d+)+")


def parse_name(name: str) -> tuple[int, str]:
    """What the path of a file says.

    Args:
      name: ends in `{NORMAL,PNEUMONIA}/<file>`.

    Returns:
      Index into `CLASSES`, and a group such as `bacteria:person23`.

    Raises:
      UserError: the name has no known pattern, or its folder says otherwise.
    """
    path = pathlib.PurePosixPath(name)
    for pattern in (_PERSON, _NORMAL, _MENDELEY_V3):
        match = pattern.fullmatch(path.stem)
        if match:
            break
    else:
        raise UserError(
            f"{name} is not a Ped-Pneumonia file name: person1_bacteria_2, "
            "person1_virus_2, IM-0001-0001, NORMAL2-IM-0001-0001 or BACTERIA-1-2 are"
        )
    kind = match.groupdict().get("kind", "normal").lower()
    if kind not in _FOLDERS.get(path.parent.name, ()):
        raise UserError(
            f"{name} is a {CLASSES[_LABELS[kind]]} film by its name but lies in folder "
            f"{path.parent.name!r}"
        )
    return _LABELS[kind], f"{kind}:{match['who']}"


def source(root: str) -> dataset.Source:
    """The films under a root, with lung masks where there are any.

    Args:
      root: see `scan`, and `lung_masks`.

    Raises:
      UserError: see `scan`.
    """
    tree, records = scan(root)
    read = reader.FilmReader(tree, records, lungs=lung_masks(root))
    return dataset.Source("ped_pneumonia", CLASSES, records, read)


def bare_group(group: str) -> str:
    """The group if one number is one child whatever the kind: a cautious reading.

    Numbers of bacterial and viral films overlap, and so do those of the official
    training and test films; whether the children do, nobody outside can tell.
    """
    return group.rpartition(":")[2]  # a bare one stays


def scan(root: str) -> tuple[files.Tree, list[dataset.Record]]:
    """All films under a root, whatever the split they were published in.

    Args:
      root: `chest_xray` itself, a folder that holds it or its zip, or the zip.

    Raises:
      UserError: no film there, or a file whose name says nothing.
    """
    tree = files.open_tree(root, zip_names=("chest_xray.zip",))
    found: dict[str, str] = {}
    # The shallower copy of a file that is there twice.
    for name in sorted(tree.names(), key=lambda name: (name.count("/"), name)):
        tail = _tail(name)
        if tail and _MASKS not in name.split("/"):
            found.setdefault(tail, name)
    if not found:
        raise UserError(
            f"{tree.root} holds no Ped-Pneumonia film: expected "
            "chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg or chest_xray.zip"
        )
    names = sorted(found.values())
    return tree, [
        dataset.Record(name, *parse_name(name), official=_SPLITS[name.split("/")[-3]])
        for name in names
    ]


def lung_masks(root: str) -> Callable[[str], np.ndarray | None] | None:
    """Reads the lung masks.

    Args:
      root: as for `scan`; the masks lie in it, or beside the zip or `chest_xray`.

    Returns:
      From the path of a film, as `scan` gives it, to `u8[H, W]`, 255 inside the lungs,
      or None where there is no mask; None where there are no masks at all.
    """
    path = files.expand(root)
    places = [path]
    if path.is_file() or path.name == "chest_xray":
        places.append(path.absolute().parent)
    candidates = [p / f"{_MASKS}{end}" for p in places for end in ("", ".zip")]
    existing = [candidate for candidate in candidates if candidate.exists()]
    if not existing:
        return None
    tree = files.open_tree(str(existing[0]))
    masks = {_stem(name): name for name in tree.names()}

    def read(name):
        mask = masks.get(_stem(name))
        if mask is None:
            return None
        return np.asarray(images.open_gray(tree.read(mask), name=mask))

    return read


def _tail(name: str) -> str:
    """`split/class/file`, the part of a path that tells films apart; or nothing."""
    parts = name.split("/")[-3:]
    known = len(parts) == 3 and parts[0] in _SPLITS and parts[1] in _FOLDERS
    return "/".join(parts) if known else ""


def _stem(name: str) -> str:
    return (
        str(pathlib.PurePosixPath(_tail(name)).with_suffix("")) if _tail(name) else ""
    )
