"""Films that a run is tested on: its own, or those of another source."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import rich.console

from hapre_jax import config as config_lib
from hapre_jax import evaluation, log, run_folder
from hapre_jax.config import Config, DataConfig
from hapre_jax.data import dataset as datasets
from hapre_jax.data import files, labels, ped_pneumonia, pipeline, sources, splits
from hapre_jax.errors import UserError

# Fields of `data` that choose among the films of one data set, or change them.
OF_ONE_DATA_SET = ("view", "draw", "official_split", "degrade")
# For the help of programs that take other films.
ABOUT_FLAGS = (
    "data.view, data.draw, data.official_split and data.degrade of the run count for "
    "its own films alone: for another data set or folder they are as flags say."
)


def same_data_set(first: DataConfig, second: DataConfig) -> bool:
    """Whether two configs are of one data set, of which each may take other films.

    It may be moved or prepared meanwhile, but two folders are two hospitals.
    """
    if first.name != second.name:
        return False
    return first.name != "folder" or files.is_same_place(first.root, second.root)


def same_films(first: DataConfig, second: DataConfig) -> bool:
    """Whether two configs name the same films, so that one's division is the other's.

    See `same_data_set`.
    """
    # Those of no other role decide which films there are, and on their split.
    counted = {
        name for name, field in config_lib.options(first).items() if not field.role
    }
    if first.name == "phantom":  # drawn at that size, with other pixels at another
        counted.add("image_size")
    return same_data_set(first, second) and all(
        getattr(first, name) == getattr(second, name) for name in counted
    )


def same_patients(first: DataConfig, second: DataConfig) -> bool:
    """Whether names of patients mean the same ones: other films of one data set."""
    if first.name == "phantom":  # which are drawn anew
        return False
    if "image" in (first.split_level, second.split_level):  # each film its own patient
        return False
    return same_data_set(first, second)


def has_bare_groups(first: DataConfig, second: DataConfig) -> bool:
    """Whether one of two configs of a data set names its patients by bare groups."""
    return first.name == "ped_pneumonia" and (first.bare_groups or second.bare_groups)


def never_seen(
    source: datasets.Dataset,
    rows: Iterable[splits.Row],
    *,
    patients: bool = False,
    bare: bool = False,
) -> np.ndarray:
    """`i[n]`: rows of a split whose films a run neither trained on nor chose by.

    Args:
      source: a split of any source.
      rows: of the run's `splits.csv`.
      patients: leaves out other films of its patients too, see `same_patients`.
      bare: these are told apart by bare groups alone, see `has_bare_groups`.
    """
    who = ped_pneumonia.bare_group if bare else str
    used = [row for row in rows if row.split != "test"]
    films = {row.sha256 for row in used}
    known = {who(row.group) for row in used if patients}
    return np.flatnonzero(
        [
            digest not in films and who(group) not in known
            for digest, group in zip(source.hashes, source.groups, strict=True)
        ]
    )


class Films(NamedTuple):
    """Films that a run is tested on."""

    films: datasets.Dataset
    mean_box: np.ndarray | None  # f32[4], mean lung box of the training split there
    known: int  # films that were left out, as the run knows them or their patients


def load(
    config: Config,
    trained: Config,
    workdir: pathlib.Path,
    *,
    classes: Sequence[str] | None,
    split: str = "test",
    whole: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Films:
    """The films that a config names, as far as a run has never seen them.

    The run's own films are divided as they were, others anew.

    Args:
      config: see `config_of`.
      trained: of the run.
      workdir: of the run.
      classes: that the run tells apart; None where it does not say yet.
      split: that is taken, "test" or "validation"; the run has chosen its best
        checkpoint by its own validation films, but was not trained on them.
      whole: whether all films of another source are taken.
      progress: called with the number of images read and their total.

    Raises:
      UserError: the films cannot be loaded, have no label space in common with the
        run, are its own but asked for whole, or it was trained on all of them.
    """
    saved = splits_file(workdir)
    is_own = same_films(config.data, trained.data)
    if is_own and whole:
        raise UserError(
            f"--all is for films of another source: {workdir} was trained on these"
        )
    source = sources.open_source(config.data, seed=config.seed)
    if classes is not None:  # before hours of reading
        labels.common(classes, source.classes)
    found = pipeline.read(source, config.data, seed=config.seed, progress=progress)
    mean_box = None
    if whole:
        films = pipeline.whole(found)
    else:
        data = pipeline.divide(found, splits_file=saved if is_own else None)
        films, mean_box = getattr(data, split), evaluation.mean_lung_box(data.train)
    if is_own:
        return Films(films, mean_box, 0)
    rows, of_run = splits.read(saved), trained.data
    if _has_some(found, rows):  # a folder that was moved
        of_run = dataclasses.replace(of_run, root=config.data.root)
    kept = never_seen(
        films,
        rows,
        patients=same_patients(config.data, of_run),
        bare=has_bare_groups(config.data, of_run),
    )
    if not len(kept):
        raise UserError(f"the run was trained on all of these {split} films")
    known = len(films) - len(kept)
    return Films(films.take(kept) if known else films, mean_box, known)


def _has_some(found: pipeline.Films, rows: Iterable[splits.Row]) -> bool:
    """Whether films of a run lie there as they did, by the same patients' names."""
    there = {
        (record.name, example.sha256, record.group)
        for record, example in zip(found.records, found.examples, strict=True)
    }
    return any((row.path, row.sha256, row.group) in there for row in rows)


def say_what_is_left_out(known: int, console: rich.console.Console) -> None:
    """Says of how many `Films` the run knows, if there are any."""
    if known:
        said = "the run was trained on them, or on others of their patients"
        log.say(console, f"{known} films are left out: {said}")


def splits_file(workdir: pathlib.Path) -> pathlib.Path:
    """That of a run.

    Raises:
      UserError: it is lost.
    """
    if file := run_folder.find(workdir, "splits.csv"):
        return file
    raise UserError(
        f"{workdir} has lost its splits.csv, which says what films it was trained on: "
        "restore the file"
    )


def config_of(
    config: Config, trained: Config, *, given: Collection[str], program: str
) -> Config:
    """A run's config with the films that flags of `--data` ask for.

    Another data set's films, see `same_data_set`, are neither chosen nor degraded as
    the run's own were, unless flags say so.

    Args:
      config: of the run, with all flags applied.
      trained: of the run.
      given: paths of the fields that have a flag.
      program: whose flags these are.

    Raises:
      UserError: something else than the data is not what it was in training.
    """
    if not same_data_set(config.data, trained.data):
        default = DataConfig()
        choices = {
            name: getattr(default, name)
            for name in OF_ONE_DATA_SET
            if f"data.{name}" not in given
        }
        data = dataclasses.replace(config.data, **choices)
        config = dataclasses.replace(config, data=data)
    now = config_lib.options(config)
    for name, field in config_lib.options(trained).items():
        if not name.startswith("data.") and field.value != now[name].value:
            raise UserError(
                f"{name} was {field.value} in training; {program} takes --data flags "
                "only"
            )
    return config
