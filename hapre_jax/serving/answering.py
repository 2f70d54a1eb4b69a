"""Answers of a trained model to films that are read one after the other.

Of files, folders and zips (`data.inputs`), or of a data set; any number fits.
"""

import collections
import concurrent.futures
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hapre_jax import appearance, boxes, explain, heatmap, probabilities
from hapre_jax.config import Config
from hapre_jax.data import images, inputs
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures
from hapre_jax.serving import inference
from hapre_jax.serving.inference import Model

_AHEAD = 2  # batches that are read while one is answered
# Of films of this size, those of three batches take 1.5 GiB.
_KEPT_PIXELS = 16 << 20


class Film(NamedTuple):
    """A film that was read."""

    input: inputs.Input
    pixels: np.ndarray  # u8[S, S, 1], the stored square
    height: int  # of the film itself
    width: int
    image: Image.Image | None  # the film itself, if it is still needed, and not large


class Refused(NamedTuple):
    """A film that could not be read."""

    input: inputs.Input
    reason: str


class Answer(NamedTuple):
    """What a model says of a film."""

    path: str
    answer: str
    probabilities: dict[str, float]
    calibrated: float | None  # the answer's probability; None if it is not known
    # yxyx in pixels of the film, and its share of the film; None of the whole film.
    key_area: list[float] | None
    kept: float | None
    flags: list[str]


def read(one: inputs.Input, config: Config, *, keep: bool) -> Film | Refused:
    """Reads a film as the model's training films were stored.

    Args:
      one: the film.
      config: of the model.
      keep: whether the film itself is needed after that; a large one is read again.
    """
    try:
        image = one.open()
        images.check_size(image, name=one.name)
        data = config.data
        pixels = images.fit(image, size=data.image_size, geometry=data.geometry)
    except UserError as error:
        return Refused(one, str(error))
    height, width = image.height, image.width
    keep = keep and height * width <= _KEPT_PIXELS
    return Film(one, pixels, height, width, image if keep else None)


def read_all(
    films: Iterable[inputs.Input], config: Config, *, threads: int, keep: bool
) -> Iterator[Film | Refused]:
    """Reads films in order, some ahead of the one that is asked for."""
    films = iter(films)
    pool = concurrent.futures.ThreadPoolExecutor(max(threads, 1))
    waiting: collections.deque = collections.deque()

    def start(count):
        for one in itertools.islice(films, count):
            waiting.append(pool.submit(read, one, config, keep=keep))

    try:
        start(_AHEAD * inference.BATCH)
        while waiting:
            found = waiting.popleft().result()
            start(1)
            yield found
    finally:
        # Who stops does not wait for films that nobody will ask for.
        pool.shutdown(wait=False, cancel_futures=True)


def check_crops(config: Config) -> None:
    """Raises `UserError` where a classifier sees something else than a cut-out."""
    if not explain.is_of_film(config):
        raise UserError(
            f"method {method_name(config)} does more to a film than to cut its key "
            "area out, so that a crop is not what its classifier sees: there are crops "
            "of policy.operation key_area and none alone"
        )


def method_name(config: Config) -> str:
    """A run's method, with its operation where that is more than the method's usual."""
    if explain.is_of_film(config):
        return config.method
    return f"{config.method} with policy.operation {config.policy.operation}"


class Answered(NamedTuple):
    """A film, what a model says of it, and what can be drawn of that."""

    film: Film
    answer: Answer
    area: np.ndarray | None  # f32[4], the key area in the film's square
    heat: np.ndarray | None  # f32[64, 64], where the model looks

    def crop(self, *, size: int, geometry: str) -> Image.Image:
        """The key area, or the whole square, cut from all of the film's pixels.

        That is what the classifier sees of a model that `check_crops` lets pass.
        """
        image = self.film.image or self.film.input.open()
        area = boxes.WHOLE if self.area is None else self.area
        cut = np.asarray(area, np.float32)
        return images.cut(image, cut, size=size, geometry=geometry)

    def draw_area(self, *, size: int) -> Image.Image:
        """The film's square with its key area."""
        return figures.film_with_boxes(self.film.pixels, self.area, size=size)

    def draw_heat(self, *, size: int) -> Image.Image:
        """The film's square with where the model looks."""
        assert self.heat is not None
        square = Image.fromarray(self.film.pixels[:, :, 0])
        enlarged = square.resize((size, size), Image.Resampling.BICUBIC)
        return heatmap.overlay(np.asarray(enlarged) / np.float32(255), self.heat)


def answer(
    model: Model,
    films: Sequence[Film],
    *,
    pad_to: int = inference.BATCH,
    with_heat: bool = False,
) -> list[Answered]:
    """Answers to at least one film.

    Args:
      model: see `inference.load`.
      films: at most `pad_to`.
      pad_to: size of the batch, each of which is compiled once.
      with_heat: whether to say where it looks, where the model has `explain`.
    """
    squares = [film.pixels for film in films]
    padded = np.stack(squares + [squares[0]] * (pad_to - len(films)))
    heat: Any = None
    if with_heat and model.explain is not None:
        heat, found = model.explain(padded)
        heat = np.asarray(heat)
    else:
        found = model.predict(padded)
    shares = np.asarray(found.probabilities)[: len(films)]
    calibrated = [None] * len(films)
    if model.temperature is not None:
        scaled = probabilities.at_temperature(shares, model.temperature)
        calibrated = scaled.max(1).tolist()
    areas = None if found.area is None else np.asarray(found.area)[: len(films)]
    answered = []
    for row, film in enumerate(films):
        shape = film.height, film.width
        box, kept = None, None
        if areas is not None:
            box = images.film_box(areas[row], *shape, model.config.data.geometry)
            kept = float(np.prod(box[2:] - box[:2]) / np.prod(shape))
        flags = []
        if model.typical is not None:
            flags = appearance.flags(film.pixels, model.typical, shape=shape)
        told = Answer(
            film.input.path,
            model.classes[int(shares[row].argmax())],
            dict(zip(model.classes, map(float, shares[row]), strict=True)),
            calibrated[row],
            None if box is None else [round(float(edge), 1) for edge in box],
            kept,
            flags,
        )
        area, looks = (None if of is None else of[row] for of in (areas, heat))
        answered.append(Answered(film, told, area, looks))
    return answered


def answer_all(
    model: Model,
    films: Iterable[inputs.Input],
    *,
    keep: bool = False,
    with_heat: bool = False,
) -> Iterator[Answered | Refused]:
    """Answers films batch by batch, in order, and says which could not be read.

    These come before the batch that they would have been in.

    Args:
      model: see `inference.load`.
      films: see `inputs.find`, and `inputs.from_arrays`.
      keep: see `read`.
      with_heat: see `answer`.
    """
    batch: list[Film] = []
    threads = model.config.data.threads
    for found in read_all(films, model.config, threads=threads, keep=keep):
        if isinstance(found, Refused):
            yield found
            continue
        batch.append(found)
        if len(batch) == inference.BATCH:
            yield from answer(model, batch, with_heat=with_heat)
            batch = []
    if batch:
        yield from answer(model, batch, with_heat=with_heat)
