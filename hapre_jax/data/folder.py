"""Your own images: one folder a class.

    root/normal/*.png            root/train/normal/*.png
    root/pneumonia/*.png         root/test/pneumonia/*.png

Folders below a class are allowed. Splits at the top are pooled and divided anew. A zip
of such a tree works as well. `groups.csv` (columns `path,group`, paths as seen from the
root) says which images belong to one patient; without it each image stands alone, and
two films of one patient may be divided between training and test.
"""

import csv
import io
import pathlib

from hapre_jax import errors
from hapre_jax.data import dataset, files

_SPLITS = {"train", "val", "valid", "validation", "test"}


def scan(root: str) -> tuple[files.Tree, list[dataset.Record], tuple[str, ...]]:
    """All images under a root, and the sorted class names.

    Raises:
      UserError: fewer than two classes, a class without an image, an image outside of
        any class, or an image that `groups.csv` does not list.
    """
    tree = files.open_tree(root)
    prefix = _strip_single_root(tree)
    parents = [""]
    children = _children(tree, prefix)
    if children and {child.lower() for child in children} <= _SPLITS:
        parents = [f"{child}/" for child in children]
    class_folders = {
        f"{prefix}{parent}{child}/": child
        for parent in parents
        for child in _children(tree, prefix + parent)
    }
    classes = tuple(sorted(set(class_folders.values())))
    if len(classes) < 2:
        raise errors.UserError(
            f"{tree.root} holds {len(classes)} class folder(s) {list(classes)}: "
            "expected one folder a class, at least two"
        )
    by_class: dict[str, list[str]] = {name: [] for name in classes}
    depth = (prefix + parents[0]).count("/") + 1
    for name in tree.names():
        head = "/".join(name.split("/")[:depth]) + "/"
        if head not in class_folders:
            raise errors.UserError(
                f"{name} in {tree.root} lies outside the class folders {list(classes)}"
            )
        by_class[class_folders[head]].append(name)
    for class_name, names in by_class.items():
        if not names:
            raise errors.UserError(
                f"class folder {class_name!r} in {tree.root} holds no image "
                f"({' '.join(files.EXTENSIONS)})"
            )
    groups = _read_groups(root, tree, prefix)
    records = [
        dataset.Record(name, label, _group(name, groups, prefix))
        for label, class_name in enumerate(classes)
        for name in by_class[class_name]
    ]
    return tree, sorted(records), classes


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


def _read_groups(root: str, tree: files.Tree, prefix: str) -> dict[str, str] | None:
    """Path to group; None without a `groups.csv` beside or above the classes."""
    beside = pathlib.Path(root).expanduser() / "groups.csv"
    inside = [n for n in ("groups.csv", f"{prefix}groups.csv") if tree.has(n)]
    if beside.is_file():
        data = beside.read_bytes()
    elif inside:
        data = tree.read(inside[0])
    else:
        return None
    rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig", "surrogateescape")))
    if not {"path", "group"} <= set(rows.fieldnames or ()):
        raise errors.UserError(
            f"groups.csv in {root} has the columns {rows.fieldnames}, not path,group"
        )
    return {row["path"]: row["group"] for row in rows}


def _group(name: str, groups: dict[str, str] | None, prefix: str) -> str:
    if groups is None:
        return name
    group = groups.get(name) or groups.get(name.removeprefix(prefix))
    if not group:
        raise errors.UserError(
            f"groups.csv gives no group for {name}: list every image or remove the file"
        )
    return group
