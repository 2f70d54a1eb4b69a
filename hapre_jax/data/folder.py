"""Your own images: one folder a class, or a table.

    root/normal/*.png            root/train/normal/*.png
    root/pneumonia/*.png         root/test/pneumonia/*.png

Folders below a class are allowed. Splits at the top are pooled and divided anew, unless
`data.official_split` asks for them. A zip of such a tree works as well. `groups.csv`
(columns `path,group`, paths as seen from the root) says which images belong to one
patient; without it each image stands alone, and two films of one patient may be divided
between training and test.

A table is a CSV file, given as the root, with the columns `path,label` and, if known,
`group`, `view` (PA, AP) and `split` (train, validation, test). Paths are as seen from
its folder, or absolute and in it. Images that it does not list are not used. Without a
`group` it may have a `groups.csv` beside it.
"""

import collections
import logging
import os
import unicodedata
from collections.abc import Iterable

from hapre_jax.data import csv_tables, dataset, files, film_tables, reader
from hapre_jax.errors import UserError, listing

_log = logging.getLogger(__name__)

_GROUPS = "groups.csv"
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def source(root: str) -> dataset.Source:
    """The images of a tree or of a table.

    Raises:
      UserError: see `scan` and `scan_table`.
    """
    scanner = scan_table if root.lower().endswith(".csv") else scan
    tree, records, classes = scanner(root)
    return dataset.Source("folder", classes, records, reader.FilmReader(tree, records))


def scan_table(
    path: str,
) -> tuple[files.Tree, list[dataset.Record], tuple[str, ...]]:
    """All images that a CSV file lists, and the sorted names of their classes.

    Raises:
      UserError: no such file, wrong columns, a row without a label or with an unknown
        split, a path that is not there or listed twice, fewer than two classes.
    """
    table = files.expand(path)
    if not os.path.isfile(table):
        raise UserError(f"{table} does not exist: give a folder, a zip or a CSV")
    rows = csv_tables.parse(
        files.read_file(table),
        ("path", "label"),
        optional=("group", "view", "split"),
        name=str(table),
    )
    # A space after a name would make it another class, or another patient.
    rows = [
        {name: text if name == "path" else text.strip() for name, text in row.items()}
        for row in rows
    ]
    tree = files.open_tree(str(table.absolute().parent))
    for row in rows:
        if not row["path"].strip():
            raise UserError(
                f"{table} has a row without a path, of the label {row['label']!r}"
            )
        if any(len(row[name].splitlines()) > 1 for name in ("label", "group")):
            raise UserError(
                f"{table} has a line break in the label or group of {row['path']}: is "
                "a quotation mark left open?"
            )
    classes = tuple(sorted({row["label"] for row in rows}))
    _check_classes(classes, str(table))
    if len(classes) < 2 or "" in classes:
        raise UserError(
            f"{table} gives the labels {list(classes)}: expected at least two, and one "
            "in each row"
        )
    has_groups = any(row["group"] for row in rows)
    beside = None
    at_top = any("/" not in name for name in tree.find(_GROUPS))
    is_beside = at_top or film_tables.find_beside(tree, _GROUPS) is not None
    if not has_groups and is_beside and table.name.lower() != _GROUPS:
        beside = _read_groups(tree, "")
    records = []
    for row in rows:
        name, split = tree.resolve(row["path"]), row["split"].lower()
        if name is None:
            raise UserError(f"{table} lists {row['path']}, which is not in its folder")
        if has_groups and not row["group"]:
            raise UserError(
                f"{table} gives no group for {name}: give one to each film or to none"
            )
        if split and split not in _SPLITS:
            raise UserError(
                f"{table} gives {name} the split {split!r}, which is none of "
                f"{', '.join(_SPLITS)}"
            )
        records.append(
            dataset.Record(
                name,
                classes.index(row["label"]),
                group=_plain_text(row["group"]) or _group(name, beside),
                view=row["view"],
                official=_SPLITS.get(split, ""),
            )
        )
    if len({record.name for record in records}) < len(records):
        counts = collections.Counter(record.name for record in records)
        raise UserError(f"{table} lists {counts.most_common(1)[0][0]} twice")
    return tree, sorted(records), classes


def scan(root: str) -> tuple[files.Tree, list[dataset.Record], tuple[str, ...]]:
    """All images under a root, and the sorted class names.

    Raises:
      UserError: fewer than two classes, a class without an image, an image outside of
        any class, or an image that `groups.csv` does not list.
    """
    tree = files.open_tree(root)
    prefix = _strip_single_root(tree)
    parents = {"": ""}  # folder of classes to official split
    children = _children(tree, prefix)
    splits = [child for child in children if child.lower() in _SPLITS]
    others = [
        child
        for child in children
        if child not in splits
        and any(name.startswith(f"{prefix}{child}/") for name in tree.names())
    ]
    # A lone folder "test" may be a class, but not with classes in it: folders that are
    # called as those beside it, or as those in them.
    known = {*others, *(c for of in others for c in _children(tree, f"{prefix}{of}/"))}
    has_classes = any(
        len(known.intersection(_children(tree, f"{prefix}{of}/"))) > 1 for of in splits
    )
    if others and (len(splits) > 1 or has_classes):
        raise UserError(
            f"{tree.root} holds {', '.join(splits)} and beside them "
            f"{listing(others)}, so what are splits and what are classes cannot "
            "be told: move one of them"
        )
    if splits and not others:
        parents = {f"{child}/": _SPLITS[child.lower()] for child in splits}
    class_folders = {
        f"{prefix}{parent}{child}/": (child, split)
        for parent, split in parents.items()
        for child in _children(tree, prefix + parent)
    }
    classes = tuple(sorted({name for name, _ in class_folders.values()}))
    _check_classes(classes, str(tree.root))
    if len(classes) < 2:
        raise UserError(
            f"{tree.root} holds {len(classes)} class folder(s) {list(classes)}: "
            "expected one folder a class, at least two"
            + (f"; {', '.join(splits)} are taken for splits" if splits else "")
        )
    found: dict[str, tuple[str, str]] = {}  # name to class and official split
    depth = next(iter(class_folders)).count("/")
    for name in tree.names():
        head = "/".join(name.split("/")[:depth]) + "/"
        if head not in class_folders:
            raise UserError(
                f"{name} in {tree.root} lies outside the class folders {list(classes)}"
            )
        found[name] = class_folders[head]
    empty = set(classes) - {class_name for class_name, _ in found.values()}
    if empty:
        raise UserError(
            f"class folder {min(empty)!r} in {tree.root} holds no image "
            f"({' '.join(files.EXTENSIONS)})"
        )
    _warn_of_doubt(tree, class_folders)
    groups = _read_groups(tree, prefix)
    records = [
        dataset.Record(
            name,
            classes.index(class_name),
            group=_group(name, groups),
            official=split,
        )
        for name, (class_name, split) in sorted(found.items())
    ]
    return tree, records, classes


def _warn_of_doubt(tree: files.Tree, class_folders: Iterable[str]) -> None:
    """Says where what is taken for classes may be years, hospitals or views."""
    inside = {tuple(sorted(_children(tree, folder))) for folder in class_folders}
    (names,) = inside if len(inside) == 1 else ((),)
    if len(names) > 1:
        taken = sorted({folder.split("/")[-2] for folder in class_folders})
        _log.warning(
            f"{listing(taken)} in {tree.root} are taken for the classes; all of "
            f"them hold the folders {listing(names)}: if those are the classes, "
            "give a table of the films (docs/data.md)"
        )


def _strip_single_root(tree: files.Tree) -> str:
    """The path, "" or ending in "/", down to where the tree first branches."""
    prefix = ""
    while True:
        children = _children(tree, prefix)
        if len(children) != 1 or not _children(tree, f"{prefix}{children[0]}/"):
            return prefix
        prefix += f"{children[0]}/"


def _children(tree: files.Tree, prefix: str) -> list[str]:
    below = [name[len(prefix) :] for name in tree.folders if name.startswith(prefix)]
    return [name for name in below if name and "/" not in name]


def _plain_text(text: str) -> str:
    """A patient's name, on whatever system it was written."""
    return unicodedata.normalize("NFC", text).strip()


def _check_classes(classes: Iterable[str], where: str) -> None:
    """Raises `UserError` where two classes look like one that was written two ways.

    Or where a name is not UTF-8, which neither pages nor files of models can hold.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if name.encode("utf-8", "replace").decode() != name:
            raise UserError(
                f"{where} has the class {name!r}, which is not UTF-8: call it "
                "otherwise, or save the table as CSV UTF-8"
            )
        plain = unicodedata.normalize("NFC", name).casefold().strip()
        if seen.setdefault(plain, name) != name:
            raise UserError(
                f"{where} has the classes {seen[plain]!r} and {name!r}: call them the "
                "same, or so that they differ by more than case and spaces"
            )


def _read_groups(tree: files.Tree, prefix: str) -> dict[str, str] | None:
    """Path to group; None without a `groups.csv` beside the zip or in the tree."""
    rows = csv_tables.read(tree, _GROUPS, ("path", "group"))
    if rows is None:
        return None
    groups: dict[str, str] = {}
    for row in rows:
        path, group = row["path"], _plain_text(row["group"])
        name = tree.resolve(path) or tree.resolve(prefix + path)
        if name and groups.setdefault(name, group) != group:
            raise UserError(f"groups.csv gives {path} two groups")
    return groups


def _group(name: str, groups: dict[str, str] | None) -> str:
    if groups is None:
        return name
    group = groups.get(name)
    if not group:
        raise UserError(
            f"groups.csv gives no group for {name}: list every image or remove the file"
        )
    return group
