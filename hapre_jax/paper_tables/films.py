"""Films that tables are of: phantoms, public data sets, and one's own."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hapre_jax import config_file, other_films
from hapre_jax.config import Config
from hapre_jax.data import files
from hapre_jax.errors import UserError


class Source(NamedTuple):
    """Films to train and test on."""

    recipe: str  # of configs/hapre_krs_best.py, and behind @ of configs/baselines.py
    values: dict[str, str] = {}

    @property
    def needs_root(self) -> bool:
        """Whether it is read from files whose place it does not know."""
        return self.recipe != "phantom" and not self.is_folder

    @property
    def is_folder(self) -> bool:
        """Whether it is films of one's own."""
        return "data.root" in self.values


class Tested(NamedTuple):
    """Films to test on alone."""

    values: dict[str, str]  # config fields of them
    whole: bool = False  # all of them, not their test part


SOURCES = {
    "phantom_high": Source("phantom", {"data.quality": "high"}),
    "phantom_medium": Source("phantom", {"data.quality": "medium"}),
    "phantom_low": Source("phantom", {"data.quality": "low"}),
    "ped_pneumonia": Source("ped_pneumonia"),
    "ped_pneumonia_low": Source("ped_pneumonia_low"),
    "rsna_pneumonia": Source("ped_pneumonia", {"data.name": "rsna_pneumonia"}),
    "nih_chest_xray": Source("ped_pneumonia", {"data.name": "nih_chest_xray"}),
}
# What films of one's own are trained by.
_RECIPE_OF_FOLDERS = "ped_pneumonia"


def choose(text: str | None, default: Sequence[str]) -> dict[str, Source]:
    """Sources by name; films of one's own are called after their folder or zip."""
    found: dict[str, Source] = {}
    for word in dict.fromkeys(text.split(",")) if text else default:
        name, source = word, SOURCES.get(word)
        if source is None:
            if not word or not files.expand(word).exists():
                raise UserError(
                    f"there is no source {word!r}; there are {', '.join(SOURCES)}, and "
                    "folders or zips of your own films"
                )
            name = name_of(word)
            source = Source(
                _RECIPE_OF_FOLDERS, {"data.name": "folder", "data.root": word}
            )
        if name in found or (word != name and name in SOURCES):
            raise UserError(f"--sources: two are called {name}; rename {word}")
        found[name] = source
    return found


def name_of(path: str) -> str:
    """What films of one's own are called: as their folder, or zip without its end."""
    place = files.expand(path).resolve()
    return place.name if place.is_dir() else place.stem


def recipe_of(source: Source) -> Config:
    """The settings of HAPre-KRS that were chosen for a source's films."""
    return config_file.load(f"configs/hapre_krs_best.py:{source.recipe}")


def fields(
    source: Source, root: str, changes: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Config fields of a source's films.

    Args:
      source: of `choose`.
      root: where films lie of which it does not know that.
      changes: config fields of all runs; those that are of one data set alone count,
        see `other_films.OF_ONE_DATA_SET`.
    """
    recipe = recipe_of(source)
    values = {
        "data.name": recipe.data.name,
        "data.degrade": recipe.data.degrade,
        "data.root": root if source.needs_root else "",
    }
    choices = {f"data.{name}" for name in other_films.OF_ONE_DATA_SET}
    changes = {path: text for path, text in (changes or {}).items() if path in choices}
    return values | source.values | changes


def all_below(path: str) -> Tested:
    """All films of a folder or zip that nothing is trained on, as they are."""
    values = {"data.name": "folder", "data.degrade": "none", "data.root": path}
    return Tested(values, whole=True)
