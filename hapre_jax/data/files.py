"""Read-only access to the image files below a folder or inside a zip."""

import errno
import functools
import itertools
import logging
import os
import pathlib
import posixpath
import threading
import unicodedata
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import IO

from hapre_jax.data import dicom
from hapre_jax.errors import UserError, listing, no_memory

_log = logging.getLogger(__name__)

_JPEG = (".jpeg", ".jpg", ".jpe", ".jfif", ".jp2")
_OTHERS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp")
EXTENSIONS = (*_JPEG, *_OTHERS, *dicom.EXTENSIONS)
# DICOM files are called by UIDs, patients and devices, so that what follows the last
# dot says little. Of these it is known; of others the first bytes are read.
_NO_FILMS = (
    *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".html", ".yaml", ".yml"),
    *(".md", ".log", ".pdf", ".xls", ".xlsx", ".py", ".db", ".zip", ".gz", ".tar"),
    *(".npy", ".npz", ".h5", ".pkl", ".pt", ".pth", ".safetensors", ".tfrecord"),
)
# Of macOS, Windows and Synology's disks, which keep smaller copies of pictures there.
_OF_SYSTEMS = ("__MACOSX", "$RECYCLE.BIN", "@eaDir", "#recycle")
# What `predict` leaves: a line a film, and folders of pictures beside.
ANSWERS, PICTURES = "predictions.jsonl", ("crops", "overlays", "heatmaps")
# Beside a division or prepared films: what was left out of them, if there is any.
UNREADABLE = "unreadable.csv"
# Too many open files, no memory: the next moment the file may be read.
_OF_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Tree:
    """Files by posix path relative to the root.

    Threads may share a tree, and it pickles for processes.

    Hidden files, and what else systems keep beside files, as thumbnails and what was
    deleted, are not part of a tree. Nor are folders of runs, and pictures that were
    made with answers: they would become films.

    Attributes:
      root: the folder or zip that was opened, for messages.
      folders: sorted paths of all folders, also of those without an image.
    """

    def __init__(
        self,
        root: pathlib.Path,
        files: Iterable[str],
        folders: Iterable[str],
        read: Callable[..., bytes],
    ):
        """Makes a tree.

        Args:
          root: see above.
          files: paths of all files.
          folders: paths of all folders.
          read: from a path, and the number of bytes that are enough, to the content.
        """
        self.root = root
        there = {name for name in files if not _is_hidden(name)}
        folders = {name for name in folders if name and not _is_hidden(name)}
        if ours := _of_programs(there, folders):
            _log.warning(
                f"{root} holds what our programs made, which is left out: "
                f"{', '.join(sorted(ours))}"
            )
            there = {name for name in there if not _is_below(name, ours)}
            folders = {name for name in folders if not _is_below(name, ours)}
        self._files = frozenset(there)
        self.folders = tuple(sorted(folders))
        self._names: list[str] | None = None
        self._alike: dict[str, str] = {}
        self._read = read

    def names(self) -> list[str]:
        """Sorted paths of the image files.

        They are known by their extension, upper or lower case; DICOM files without one,
        or with one of their device's, by their first bytes.
        """
        if self._names is None:
            self._names = [name for name in sorted(self._files) if self._is_film(name)]
        return list(self._names)

    def zips(self) -> list[str]:
        """Sorted paths of the zips."""
        return sorted(name for name in self._files if name.lower().endswith(".zip"))

    def _is_film(self, name: str) -> bool:
        base = name.rpartition("/")[2]
        if base.lower().endswith(EXTENSIONS):
            return True
        extension = pathlib.PurePosixPath(base).suffix.lower()
        if extension in _NO_FILMS or base.upper() == "DICOMDIR":  # their list
            return False
        try:
            return dicom.is_dicom(self._read(name, dicom.HEAD), base)
        except Exception:  # as in `read`; of a file that may be of any kind
            return False

    def resolve(self, path: str) -> str | None:
        """The file that a table means, or None.

        Args:
          path: as seen from the root, or absolute; possibly written on another system,
            with backslashes or with accents composed otherwise.
        """
        if posixpath.isabs(path):
            path = posixpath.relpath(path, os.path.abspath(self.root))
        name = posixpath.normpath(path)
        if name in self._files:
            return name
        if not self._alike:
            self._alike = {_plain(file): file for file in sorted(self._files)}
        return self._alike.get(_plain(path))

    def find(self, base_name: str) -> list[str]:
        """Sorted paths of all files of that name, in any case, image or not."""
        wanted = base_name.lower()
        return sorted(n for n in self._files if n.rpartition("/")[2].lower() == wanted)

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
          UserError: it cannot be read: permissions, a damaged or encrypted zip; or it
            is larger than `dicom.MAX_BYTES`.
          OSError, MemoryError: the machine has no more, which says nothing of the file.
        """
        try:
            return self._read(name)
        except MemoryError as error:
            raise no_memory(name) from error
        # zipfile has no common base class: RuntimeError asks for a password,
        # NotImplementedError is an unknown compression, zlib.error a damaged stream.
        except Exception as error:
            if getattr(error, "errno", None) in _OF_MACHINE:
                raise
            raise UserError(f"{name} in {self.root} cannot be read: {error}") from error


def open_tree(root: str, *, zip_names: Sequence[str] = ()) -> Tree:
    """Opens a folder of images or a zip of them.

    Args:
      root: a zip, a folder that holds the extracted images, or a folder that holds
        their zip.
      zip_names: zips to look for first in a folder, unless the folder also holds
        the extracted copy (a sub-folder named like the zip).

    Raises:
      UserError: nothing there, no image there, not a zip, or several zips to choose
        from.
    """
    tree = _find_tree(root, zip_names)
    # At the top there may be the zip that the films were unpacked from.
    within = [name for name in tree.zips() if "/" in name or tree.root.is_file()]
    if within:
        _log.warning(
            f"left out {len(within)} zip(s) in {tree.root}, whose films do not count "
            f"until they are unpacked: {listing(within)}"
        )
    return tree


def _find_tree(root: str, zip_names: Sequence[str]) -> Tree:
    if not root:
        raise UserError(
            "data.root is empty: give the folder or the zip that holds the images"
        )
    path = expand(root)
    # Unlike pathlib's, these are no errors for a name that is too long.
    if os.path.isfile(path):
        return _open_zip(path)
    if not os.path.isdir(path):
        raise UserError(f"{path} does not exist: give a folder or a zip")
    _check_listed(path)
    for zip_name in zip_names:
        extracted = path / pathlib.Path(zip_name).stem
        if (path / zip_name).is_file() and not extracted.is_dir():
            return _open_zip(path / zip_name)
    tree = _open_folder(path)
    if tree.names():
        return tree
    zips = [path / name for name in tree.zips() if "/" not in name]
    if len(zips) == 1:
        return _open_zip(zips[0])
    if zips:
        listed = ", ".join(p.name for p in zips)
        raise UserError(f"{path} holds several zips ({listed}): name one of them")
    raise UserError(
        f"{path} holds no image ({' '.join(EXTENSIONS)}) and no zip of images"
    )


def open_films(root: str) -> Tree:
    """Opens a folder or a zip of films; a folder may hold zips of films too.

    Raises:
      UserError: nothing there, no film there, or not a zip.
    """
    path = pathlib.Path(root)
    if not os.path.isdir(path):
        return _open_zip(path)
    _check_listed(path)
    tree = _open_folder(path)
    if not tree.names() and not tree.zips():
        raise UserError(f"{path} holds no image ({' '.join(EXTENSIONS)}) and no zip")
    return tree


def expand(root: str) -> pathlib.Path:
    """A path whose `~` is the user's home, unless a file is called so."""
    is_there = os.path.exists(root)
    return pathlib.Path(root if is_there else os.path.expanduser(root))


def is_same_place(one: str, other: str) -> bool:
    """Whether two paths lead to the same folder or file."""
    return expand(one).resolve() == expand(other).resolve()


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of a file.

    Raises:
      UserError: it is not there, no regular file, larger than `dicom.MAX_BYTES`, or not
        readable.
      OSError: the machine has no more, which says nothing of the file.
    """
    try:
        return _read_regular(path)
    except OSError as error:
        if error.errno in _OF_MACHINE:
            raise
        reason: str | None = error.strerror
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{path} cannot be read: {reason}")


def _read_regular(path: pathlib.Path, enough: int | None = None) -> bytes:
    # Opening a pipe would wait for one who writes.
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        return file.read(enough) if enough else _read_all(file, 1 << 20)


def _read_all(file: IO[bytes], step: int, *, size: int = 0) -> bytes:
    """All of a file in steps of some bytes; `size` is what it claims to have."""
    parts, got = [], 0
    while size <= dicom.MAX_BYTES and (part := file.read(step)):
        parts.append(part)
        got += len(part)
        size = max(size, got)
    if size > dicom.MAX_BYTES:
        raise ValueError(f"it has more than {dicom.MAX_BYTES >> 20} MiB")
    return b"".join(parts)


def _check_listed(folder: pathlib.Path) -> None:
    """Raises `UserError` where nobody may look into a folder."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _open_folder(root: pathlib.Path) -> Tree:
    found: list[str] = []
    folders: list[str] = []
    seen: set[str] = set()
    again: list[str] = []  # links to folders that are there

    def relative(folder):
        path = pathlib.Path(folder).relative_to(root)
        return "" if path == pathlib.Path() else path.as_posix()

    def leave_out(error):
        _log.warning(f"{error.filename} is left out: {error.strerror}")
        folders.append(relative(error.filename))

    # Links are followed, since clusters keep data behind them; each folder once, since
    # a link may point upwards, and by its own name if it has one below the root.
    starts = [str(root)]
    while starts:
        links: list[str] = []
        for start in starts:
            if os.path.realpath(start) in seen:
                again.append(relative(start))
                continue
            for folder, below, names in os.walk(start, onerror=leave_out):
                real = os.path.realpath(folder)
                if real in seen:
                    below.clear()
                    continue
                seen.add(real)
                below.sort()
                paths = [os.path.join(folder, name) for name in below]
                links += [path for path in paths if os.path.islink(path)]
                folders.append(relative(folder))
                found += [f"{folders[-1]}/{name}".lstrip("/") for name in names]
        # Of two links to one folder, always the same is followed, the upper one.
        starts = sorted(links, key=lambda path: (path.count(os.sep), path))
    if again := [name for name in again if not _is_hidden(name)]:
        _log.warning(
            f"left out {len(again)} link(s) in {root} to folders that are there "
            f"already: {listing(again)}"
        )
    return Tree(root, found, folders, functools.partial(_read_below, root))


def _open_zip(path: pathlib.Path) -> Tree:
    try:
        archive = zipfile.ZipFile(path)
    # zipfile has no common base class here either.
    except Exception as error:
        what = "is not a readable zip"
        if path.suffix.lower() != ".zip":
            what = "is no folder, no zip and no .csv"
        raise UserError(f"{path} {what}: {error}") from error
    entries = _entries(archive)
    if twice := len(archive.infolist()) - len(entries):
        _log.warning(
            f"left out {twice} entries of {path}, which are called as later ones"
        )
    if outside := [name for name in entries if name.startswith("../")]:
        _log.warning(
            f"left out {len(outside)} entries of {path}, which say that they lie "
            f"outside of it: {listing(outside)}"
        )
    folders = {
        parent.as_posix()
        for name in entries
        for parent in pathlib.PurePosixPath(name).parents
    } - {"."}
    found = [name for name, entry in entries.items() if not entry.is_dir()]
    folders |= entries.keys() - set(found)
    tree = Tree(path, found, folders, _ZipReader(path, archive))
    if not tree.names():
        raise UserError(f"{path} holds no image ({' '.join(EXTENSIONS)})")
    return tree


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by their path, which some programs write with `./` or backslashes."""
    return {
        posixpath.normpath(entry.filename.replace("\\", "/").lstrip("/")): entry
        for entry in archive.infolist()
    }


def _read_below(root: pathlib.Path, name: str, enough: int | None = None) -> bytes:
    return _read_regular(root / name, enough)


class _ZipReader:
    """Reads entries of a zip; a copy in another process opens the zip anew."""

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile | None = None):
        self._path = path
        # An archive has one file position; that zipfile guards it is not documented.
        self._archive, self._lock = archive or zipfile.ZipFile(path), threading.Lock()
        self._entries = _entries(self._archive)

    def __call__(self, name: str, enough: int | None = None) -> bytes:
        info = self._entries[name]
        with self._lock, self._archive.open(info) as entry:
            if enough:
                return entry.read(enough)
            is_bounded = info.compress_type in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            )
            # Of other kinds zipfile unpacks all that it has read, at least 4 KiB.
            step = 1 << 20 if is_bounded else 1 << 12
            return _read_all(entry, step, size=info.file_size)  # as it says

    def __reduce__(self):
        return _ZipReader, (self._path,)


def _of_programs(files: Collection[str], folders: Collection[str]) -> set[str]:
    """Folders of runs, and of pictures beside answers."""
    found = set()
    for folder in folders:
        above, _, name = folder.rpartition("/")
        inside = f"{above}/" if above else ""
        if name == "checkpoints" and above and f"{inside}config.json" in files:
            found.add(above)
        elif name in PICTURES and f"{inside}{ANSWERS}" in files:
            found.add(folder)
    return found


def _is_below(name: str, folders: set[str]) -> bool:
    return not folders.isdisjoint(itertools.accumulate(name.split("/"), "{}/{}".format))


def _is_hidden(name: str) -> bool:
    return any(p.startswith(".") or p in _OF_SYSTEMS for p in name.split("/"))


def _plain(path: str) -> str:
    """A path as any system may write it."""
    path = posixpath.normpath(path.replace("\\", "/"))
    return unicodedata.normalize("NFC", path)
