"""What data sources are made of: records and films on disk, then arrays of squares."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

NOWHERE = np.full(4, np.nan, np.float32)  # a box that is not known
NO_BOXES = np.zeros((0, 4), np.float32)
NOWHERE.flags.writeable = NO_BOXES.flags.writeable = False


def is_known(boxes: np.ndarray) -> np.ndarray:
    """Which of boxes `f32[..., 4]` are known, and not `NOWHERE`: `bool[...]`."""
    return np.isfinite(boxes).all(axis=-1)


class Record(NamedTuple):
    """One film before it is read."""

    name: str  # posix path inside the tree
    label: int  # index into the classes
    group: str  # films of one group are never divided between splits
    view: str = ""  # "PA", "AP" or another, where the source says it
    official: str = ""  # "train", "validation" or "test", where it was published so


class Facts(NamedTuple):
    """What is known of a film besides its pixels.

    Boxes are yxyx in [0, 1] of the whole upright film.
    """

    sha256: str  # of the original file
    height: int  # of the upright film, in pixels
    width: int
    lung_box: np.ndarray = NOWHERE  # f32[4], tight around both lungs; NaN where unknown
    lesion_boxes: np.ndarray = NO_BOXES  # f32[n, 4]
    # What would undo what was done to the film, where that is known: parameters of
    # operations by name, see `operations.Operation.parameters`.
    corrections: tuple[tuple[str, float], ...] = ()


class Film(NamedTuple):
    """A film as it was read."""

    image: Image.Image  # mode L, upright, full size
    encoded: bytes  # the original file; empty if there is none
    facts: Facts
    lungs: np.ndarray | None = None  # u8[h, w]: 255 lung, 127 unknown, 0 elsewhere


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection of films that can be read one by one.

    `read` takes the index of a record. Threads may call it at once, and processes after
    pickling; it raises `UserError`, which names the file, where there is no film.
    """

    name: str
    classes: tuple[str, ...]
    records: Sequence[Record]
    read: Callable[[int], Film]
    facts: Sequence[Facts] | None = None  # of all records, if known without reading
    # Whether `Record.official` divides the source whatever is configured.
    is_divided: bool = False


class Images(Protocol):
    """N squares `u8[N, H, W, 1]`: an array, or what reads them when asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """The images of an index, a slice or an array of indices."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """N square images of H = W pixels.

    Boxes are yxyx in [0, 1] of the stored frame.
    """

    images: Images
    labels: np.ndarray  # i32[N]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    # f32[N, 4], NaN where unknown: by default in all images.
    lung_boxes: np.ndarray = dataclasses.field(default_factory=lambda: NO_BOXES)
    # f32[n, 4] for each image; None if lesions are known in no image.
    lesion_boxes: tuple[np.ndarray, ...] | None = None
    views: tuple[str, ...] = ()  # N, or none where the source says none
    hashes: tuple[str, ...] = ()  # N, SHA-256 of the original files
    # f32[N] of each name, where they are known; see `Facts`.
    corrections: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    masks: np.ndarray | None = None  # u8[N, H, W, 1], 255 in the lungs; if asked for
    # f32[N, M, 4], lesion boxes, and NaN where an image has fewer than M; if asked for.
    boxes: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.lung_boxes):
            unknown = np.tile(NOWHERE, (len(self), 1))
            object.__setattr__(self, "lung_boxes", unknown)

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def lungs_known(self) -> np.ndarray:
        """`bool[N]`: the images whose lungs are known."""
        return is_known(self.lung_boxes)

    def take(self, rows: np.ndarray) -> "Dataset":
        """The images of some rows `i[n]`, in memory."""
        lesions = self.lesion_boxes
        return Dataset(
            images=self.images[rows],
            labels=self.labels[rows],
            names=tuple(self.names[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            classes=self.classes,
            lung_boxes=self.lung_boxes[rows],
            lesion_boxes=None if lesions is None else tuple(lesions[r] for r in rows),
            views=tuple(self.views[row] for row in rows) if self.views else (),
            hashes=tuple(self.hashes[row] for row in rows) if self.hashes else (),
            corrections={name: of[rows] for name, of in self.corrections.items()},
            masks=None if self.masks is None else self.masks[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
        )


class Splits(NamedTuple):
    """One source, divided."""

    train: Dataset
    validation: Dataset
    test: Dataset
