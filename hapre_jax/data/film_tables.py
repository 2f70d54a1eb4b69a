"""Tables that come with films, where they lie, and the films that they list."""

import logging
import os
import pathlib
from collections.abc import Collection, Iterable

from hapre_jax.data import files
from hapre_jax.errors import UserError, listing

_log = logging.getLogger(__name__)


def read(tree: files.Tree, base_name: str) -> bytes | None:
    """A file that comes with films: beside their zip, else anywhere in the tree.

    Returns:
      Its bytes; None if there is no such file.

    Raises:
      UserError: the tree holds several, or see `files.Tree.read`.
    """
    beside = find_beside(tree, base_name)
    if beside is not None:
        return files.read_file(beside)
    found = tree.find(base_name)
    if len(found) > 1:
        raise UserError(
            f"{tree.root} holds {base_name} {len(found)} times ({', '.join(found)}): "
            "keep one"
        )
    return tree.read(found[0]) if found else None


def find_beside(tree: files.Tree, base_name: str) -> pathlib.Path | None:
    """A file of that name, in any case, beside a zip; None of a folder.

    Raises:
      UserError: there are several.
    """
    if not tree.root.is_file():
        return None
    try:
        names = sorted(os.listdir(tree.root.parent))
    except OSError:  # which may be entered, and not listed
        names = [base_name]
    paths = [tree.root.parent / n for n in names if n.lower() == base_name.lower()]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        named = ", ".join(path.name for path in found)
        raise UserError(f"{tree.root.parent} holds {named}: keep one")
    return found[0] if found else None


def find_films(
    tree: files.Tree,
    names: Iterable[str],
    *,
    wanted: Collection[str],
    known: Collection[str],
) -> dict[str, str]:
    """Finds the films that a table lists by the stems of their names.

    Those that are missing, and films that the table does not know, are warned of only:
    of large collections often a part is downloaded.

    Args:
      tree: holds the films.
      names: of the films in it.
      wanted: stems of the films to find.
      known: stems of all films in the table.

    Returns:
      From stem to name, in the order of the names.

    Raises:
      UserError: two films have one stem, or none of those wanted is there.
    """
    films: dict[str, str] = {}
    for name in sorted(names):
        stem = pathlib.PurePosixPath(name).stem
        if films.setdefault(stem, name) != name:
            raise UserError(
                f"{tree.root} holds film {stem} twice, as {films[stem]} and {name}: "
                "give the folder of one copy"
            )
    missing = sorted(stem for stem in wanted if stem not in films)
    unknown = sorted(stem for stem in films if stem not in known)
    if len(missing) == len(wanted):
        raise UserError(
            f"{tree.root} holds none of the labelled films: {listing(missing)}"
        )
    if missing:
        _log.warning(
            f"left out {len(missing)} of {len(wanted)} labelled films, which are not "
            f"in {tree.root}: {listing(missing)}"
        )
    if unknown:
        _log.warning(
            f"left out {len(unknown)} of {len(films)} films in {tree.root}, which have "
            f"no label: {listing(unknown)}"
        )
    return {stem: name for stem, name in films.items() if stem in wanted}
