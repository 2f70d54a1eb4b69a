"""Draws films of Ped-Pneumonia at every level of `--data.degrade`.

    python launch/degrade_sheet.py DIR --out docs/degrade.png

DIR holds Ped-Pneumonia as `configs/ped_pneumonia.py` reads it. The lungs are marked
where a mask is known. Films are taken at equal distances from the sorted names.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from hapre_jax import cli
from hapre_jax.data import degrade, images, ped_pneumonia
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures

_FILM, _GAP = 180, 6  # pixels


def draw_sheet(root: str, *, count: int, seed: int) -> Image.Image:
    """A column a film: as it is, `medium`, and `low` three times.

    Raises:
      UserError: no film there, or one that cannot be read.
    """
    tree, records = ped_pneumonia.scan(root)
    masks = ped_pneumonia.lung_masks(root)
    levels = ("none", "medium", "low", "low", "low")
    size = (count * (_FILM + _GAP) - _GAP, len(levels) * (_FILM + _GAP) - _GAP)
    sheet = Image.new("RGB", size, figures.SHEET)
    chosen = np.linspace(0, len(records) - 1, count).astype(int)
    for column, index in enumerate(chosen):
        name = records[index].name
        film = images.open_gray(tree.read(name), name=name)
        mask = masks(name) if masks else None
        lungs = None if mask is None else mask == 255  # 127 is unknown
        for row, level in enumerate(levels):
            picture = _picture(film, lungs, level, (seed, row, column))
            sheet.paste(picture, (column * (_FILM + _GAP), row * (_FILM + _GAP)))
    return sheet


def _picture(film, lungs, level, seed) -> Image.Image:
    if level == "none":
        pixels = images.fit(film, size=_FILM, geometry="letterbox")[:, :, 0]
        box = np.full(4, np.nan, np.float32)
        if lungs is not None:
            tight = images.tight_box(lungs)
            box = images.frame_box(tight, film.height, film.width, "letterbox")
    else:
        pixels, box, *_ = degrade.degrade(
            film,
            lungs,
            level=degrade.LEVELS[level],
            size=_FILM,
            rng=np.random.default_rng(seed),
        )
    picture = Image.fromarray(pixels).convert("RGB")
    if np.isfinite(box).all():
        top, left, bottom, right = (float(edge) * _FILM for edge in box)
        pen = ImageDraw.Draw(picture)
        pen.rectangle((left, top, right, bottom), outline=figures.LUNGS_COLOR)
    return picture


def main(argv: Sequence[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python launch/degrade_sheet.py",
        description=__doc__,
    )
    parser.add_argument("root", metavar="DIR", help="folder or zip of Ped-Pneumonia")
    parser.add_argument(
        "--out", default="degrade.png", type=pathlib.Path, help="picture to write"
    )
    parser.add_argument("--films", type=int, default=6, help="how many columns")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.films < 1:
        raise UserError(f"--films is {arguments.films}, but must be at least 1")
    sheet = draw_sheet(arguments.root, count=arguments.films, seed=arguments.seed)
    figures.save(sheet, arguments.out)
    print(f"Written to {arguments.out}.")
    return 0


if __name__ == "__main__":
    cli.run(main)
