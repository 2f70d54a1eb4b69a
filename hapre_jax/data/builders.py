"""The data sets for TensorFlow Datasets, which need no TensorFlow.

    import tensorflow_datasets as tfds
    from hapre_jax.data import builders  # registers them

    builder = builders.PedPneumonia(data_dir=OUT, root=DIR)
    builder.download_and_prepare()
    films = tfds.data_source("ped_pneumonia", data_dir=OUT, split="train")

Films keep their resolution. A gray 8-bit JPEG or PNG is stored byte for byte, another
file as a PNG of its luma. Features, where a source has them:

* `image` u8[H, W, 1], `label`, `group` (of a patient), `view` (PA, AP), `path`,
  `sha256` (of the original file)
* `lung_mask` u8[H, W, 1]: 255 lung, 127 unknown, 0 elsewhere
* `lung_box` f32[4], NaN where unknown, and `lesion_boxes` f32[n, 4]: yxyx in [0, 1] of
  the film

Splits are those in which a source was published, else all is `train`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import io
import pathlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from hapre_jax.data import (
    dataset,
    files,
    folder,
    images,
    nih_chest_xray,
    ped_pneumonia,
    phantom,
    pipeline,
    prepared,
    rsna_pneumonia,
)
from hapre_jax.errors import UserError

_SHARD_FILMS = 512  # some 100 to 300 MB of films of usual size
_THREADS = 8  # that wait for a disk, or compress


# Not a GeneratorBasedBuilder, which needs TensorFlow from a gigabyte a split on.
class FilmBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What the builders share.

    Attributes:
      unreadable: after preparing, the films that were left out, and why.
      progress: called with the number of films done and their total.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    ABOUT: types.ModuleType  # that reads the films
    CLASSES: Sequence[str] | None  # None if only the films tell
    BOXES: Sequence[str] = ()  # of lung_mask, lung_box, lesion_boxes

    def __init__(
        self,
        *,
        root: str = "",
        on_error: str = "skip",
        file_format: Any = "array_record",  # the one that needs no TensorFlow
        **kwargs: Any,
    ):
        """Makes a builder.

        Args:
          root: folder or zip of the films; else `manual_dir` of the download config.
          on_error: "skip" leaves a film out that cannot be read, "stop" raises.
          file_format: of TFDS.
          kwargs: of `tfds.core.ShardBasedBuilder`, as `data_dir` and `config`.
        """
        self.unreadable: list[pipeline.Unreadable] = []
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self._root, self._on_error = root, on_error
        self._rows: dict[int, prepared.Row] = {}  # by index of the record
        self._stored: collections.Counter[str] = collections.Counter()  # of a split
        super().__init__(file_format=file_format, **kwargs)

    def open(self, root: str) -> dataset.Source:
        """The films below a root."""
        raise NotImplementedError

    @property
    def variant(self) -> str:
        """Name of the way in which the films are labelled, if there are several."""
        return ""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=self.CLASSES),
            "group": text,
            "view": text,
            "path": text,
            "sha256": text,
            "lung_mask": tfds.features.Image(shape=(None, None, 1)),
            "lung_box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            # A sequence of BBoxFeature would be a list, of no shape where it is empty.
            "lesion_boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        }
        for name in {"lung_mask", "lung_box", "lesion_boxes"} - set(self.BOXES):
            del features[name]
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.ABOUT.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            # Films lie in the order of the source; training shuffles anyway.
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None):
        super()._download_and_prepare(dl_manager, download_config)
        header = prepared.Header(
            self.name,
            self.variant,
            tuple(self.info.features["label"].names),
            str(pathlib.Path(self._root).absolute()) if self.name == "folder" else "",
        )
        rows = [self._rows[index] for index in sorted(self._rows)]
        if self.unreadable:
            folder = pathlib.Path(self.data_path)  # not TFDS's kind of path
            pipeline.write_unreadable(folder / files.UNREADABLE, self.unreadable)
        prepared.write_index(self.data_path / prepared.INDEX, header, rows)

    def _shard_iterators_per_split(self, dl_manager):
        root = self._root
        if not root and self.MANUAL_DOWNLOAD_INSTRUCTIONS:
            root = str(dl_manager.manual_dir)
        source = self.open(root)
        self.info.features["label"].names = list(source.classes)
        for kept in (self._rows, self._stored, self.unreadable):
            kept.clear()
        indices: dict[str, list[int]] = {}
        for index, record in enumerate(source.records):
            indices.setdefault(record.official or "train", []).append(index)
        return {
            split: [
                functools.partial(
                    self._shard, source, split, shard, shard[-1] == members[-1]
                )
                for shard in _pieces(members, _SHARD_FILMS)
            ]
            for split, members in indices.items()
        }

    def _shard(
        self, source: dataset.Source, split: str, indices: Sequence[int], is_last: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The films of a shard as TFDS takes them: (key, example)."""

        def attempt(index):
            try:
                film = source.read(index)
            except UserError as error:
                return error
            return film.facts, self._example(source.records[index], film)

        for index, result in _read_ahead(attempt, indices):
            record = source.records[index]
            if not isinstance(result, UserError):
                facts, example = result
                position = self._stored[split]
                self._rows[index] = prepared.Row(split, position, record, facts)
                self._stored[split] += 1
                yield record.name, example
            elif self._on_error == "stop":
                raise result
            else:
                self.unreadable.append(pipeline.Unreadable(record.name, str(result)))
            done = len(self._rows) + len(self.unreadable)
            self.progress(done, len(source.records))
        if is_last and not self._stored[split]:
            raise UserError(
                f"no film of {split} can be read; for one, {self.unreadable[-1][1]}"
            )

    def _example(self, record: dataset.Record, film: dataset.Film) -> dict[str, Any]:
        facts = film.facts
        values = {
            "image": _ReadOnce(images.stored(film.encoded, film.image)),
            "label": record.label,
            "group": _utf8(record.group),
            "view": _utf8(record.view),
            "path": _utf8(record.name),
            "sha256": facts.sha256,
        }
        if "lung_mask" in self.BOXES:
            lungs = film.lungs
            if lungs is None:
                lungs = np.full((facts.height, facts.width), 127, np.uint8)
            values["lung_mask"] = _ReadOnce(images.png(Image.fromarray(lungs)))
        if "lung_box" in self.BOXES:
            values["lung_box"] = facts.lung_box
        if "lesion_boxes" in self.BOXES:
            values["lesion_boxes"] = facts.lesion_boxes
        return values


class _ReadOnce(io.BytesIO):
    """A file that is empty once read: TFDS keeps all examples until a shard ends."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.close()
        return data


def _utf8(text: str) -> bytes:
    """The bytes of a name, which need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _read_ahead(
    read: Callable[[int], Any], indices: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Each index and what is read there, in order."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # A pool reads all that it is given, and waits for no one: little at a time.
        for piece in _pieces(indices, 2 * _THREADS):
            yield from zip(piece, pool.map(read, piece), strict=True)


def _pieces(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class PedPneumonia(FilmBuilder):
    """Ped-Pneumonia: see `hapre_jax.data.ped_pneumonia`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download ChestXRay2017.zip from doi:10.17632/rscbjbr9sj.2, or chest-xray-pneumonia
    from Kaggle, and give the zip or the folder that holds chest_xray/. Lung masks, if
    you have them, lie beside it as chest_xray_lungmasks/ or its zip.
    """
    ABOUT = ped_pneumonia
    CLASSES = ped_pneumonia.CLASSES
    BOXES = ("lung_mask", "lung_box")

    def open(self, root):
        return ped_pneumonia.source(root)


class RsnaPneumonia(FilmBuilder):
    """RSNA's challenge: see `hapre_jax.data.rsna_pneumonia`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download rsna-pneumonia-detection-challenge.zip from Kaggle and give it, or the
    folder that holds stage_2_train_images/, stage_2_train_labels.csv and
    stage_2_detailed_class_info.csv.
    """
    ABOUT = rsna_pneumonia
    CLASSES = rsna_pneumonia.CLASSES
    BOXES = ("lesion_boxes",)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="class", description="Normal against Lung Opacity"
        ),
        tfds.core.BuilderConfig(name="target", description="Target 0 against Target 1"),
    ]

    @property
    def variant(self):
        return self.builder_config.name

    def open(self, root):
        return rsna_pneumonia.source(root, labels=self.variant)


class NihChestXray(FilmBuilder):
    """ChestX-ray14, two classes of it: see `hapre_jax.data.nih_chest_xray`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download images_001.tar.gz to images_012.tar.gz, Data_Entry_2017_v2020.csv,
    BBox_List_2017.csv, train_val_list.txt and test_list.txt from
    https://nihcc.app.box.com/v/ChestXray-NIHCC, unpack the archives, and give the
    folder that holds all of them. Some of the archives are enough to begin with.
    """
    ABOUT = nih_chest_xray
    CLASSES = nih_chest_xray.CLASSES
    BOXES = ("lesion_boxes",)

    def open(self, root):
        return nih_chest_xray.source(root)


@dataclasses.dataclass(kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
    """Which phantoms are drawn: see `phantom.source`."""

    quality: str
    counts: tuple[int, int, int] = (3000, 300, 600)
    seed: int = 0
    size: int = 128


class Phantom(FilmBuilder):
    """Drawn films: see `hapre_jax.data.phantom`."""

    ABOUT = phantom
    CLASSES = phantom.CLASSES
    BOXES = ("lung_box", "lesion_boxes")
    BUILDER_CONFIGS = [
        PhantomConfig(
            name=quality, quality=quality, description=f"Phantoms of {quality} quality"
        )
        for quality in phantom.QUALITIES
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "low"  # as that of `data.quality`

    @property
    def variant(self):
        return self.builder_config.name

    def open(self, root):
        config = self.builder_config
        return phantom.source(
            config.counts, seed=config.seed, quality=config.quality, size=config.size
        )


class Folder(FilmBuilder):
    """Your own films: see `hapre_jax.data.folder`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Give a folder or a zip that holds one folder of films for each class, or a CSV file
    with the columns path and label.
    """
    ABOUT = folder
    CLASSES = None

    def open(self, root):
        return folder.source(root)


BUILDERS: dict[str, type[FilmBuilder]] = {
    "ped_pneumonia": PedPneumonia,
    "rsna_pneumonia": RsnaPneumonia,
    "nih_chest_xray": NihChestXray,
    "phantom": Phantom,
    "folder": Folder,
}
