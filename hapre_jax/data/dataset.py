"""What every data source is turned into: arrays in memory, one row an image."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Record(NamedTuple):
    """One image file before it is read."""

    name: str  # posix path inside the tree
    label: int  # index into the classes
    group: str  # images of one group are never divided between splits


@dataclasses.dataclass(frozen=True)
class Dataset:
    """N square images of H = W pixels.

    `lung_boxes` are yxyx in [0, 1] of the stored frame, NaN where unknown; None if
    they are known of no image.
    """

    images: np.ndarray  # u8[N, H, W, 1]
    labels: np.ndarray  # i32[N]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    lung_boxes: np.ndarray | None = None  # f32[N, 4]

    def __len__(self) -> int:
        return len(self.labels)


class Splits(NamedTuple):
    """One source, divided."""

    train: Dataset
    validation: Dataset
    test: Dataset
