"""Reads the films of a tree of files, with the boxes that are known of them."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hapre_jax.data import dataset, files, images


@dataclasses.dataclass(frozen=True)
class FilmReader:
    """`Source.read` of films that are files."""

    tree: files.Tree
    records: Sequence[dataset.Record]
    # From the name of a film to `u8[h, w]`, its lung mask, or None.
    lungs: Callable[[str], np.ndarray | None] | None = None
    # From the name of a film to `f32[n, 4]`, in fractions of the film.
    lesions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __call__(self, index: int) -> dataset.Film:
        """The film of a record.

        Raises:
          UserError: see `images.open_gray` and `images.check_size`.
        """
        name = self.records[index].name
        encoded = self.tree.read(name)
        image = images.open_gray(encoded, name=name)
        images.check_size(image, name=name)
        lungs = self.lungs(name) if self.lungs else None
        facts = dataset.Facts(
            hashlib.sha256(encoded).hexdigest(),
            image.height,
            image.width,
            dataset.NOWHERE if lungs is None else lung_box(lungs),
            self.lesions.get(name, dataset.NO_BOXES),
        )
        return dataset.Film(image, encoded, facts, lungs)


def lung_box(lungs: np.ndarray) -> np.ndarray:
    """Tight box of a lung mask, `f32[4]` in [0, 1]; NaN where it shows no lung."""
    shape = np.array(lungs.shape * 2, np.float32)
    return images.tight_box(lungs == 255) / shape
