"""Answers films with this model; without hapre_jax, with JAX and NumPy alone.

    python answer.py FILM...

Reading films takes Pillow too. A program of your own does the same with `load` and
`square`: `answer = load("this/folder")`, then `answer(squares)` of any number of
squares `u8[B, S, S, 1]` gives a dictionary of arrays: "probabilities" f32[B, K] and,
where the model chooses key areas, "key_area" f32[B, 4]: top, left, bottom and right, as
shares of the square.
"""

import io
import json
import os
import pathlib
import sys

import jax
import numpy as np
from jax import export

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "JPEG2000")
MIN_SIDE = 16  # pixels: icons and stripes are no films


def load(folder):
    """The function from squares to answers."""
    folder = pathlib.Path(folder)
    with open(folder / "weights.safetensors", "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(size))
        data = file.read()
    types = {"F32": np.float32, "I32": np.int32, "U32": np.uint32, "BOOL": np.bool_}
    weights = {}
    for name, of in tensors.items():
        if name != "__metadata__":
            first, last = of["data_offsets"]
            array: np.ndarray = np.frombuffer(data[first:last], types[of["dtype"]])
            weights[name] = jax.numpy.asarray(array.reshape(of["shape"]))
    graph = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    call = jax.jit(graph.call)

    def answer(squares):
        found = call(weights, squares)
        return {name: np.asarray(array) for name, array in found.items()}

    return answer


def square(path, size, geometry):
    """A film as a square of gray levels `u8[S, S, 1]`, as in the training.

    DICOM and TIFF files need more care than is taken here: they are refused.

    Raises:
      OSError, ValueError: it cannot be read, or has values of an unknown range.
    """
    from PIL import Image, ImageOps

    data = pathlib.Path(path).read_bytes()
    opened = Image.open(io.BytesIO(data), formats=FORMATS)
    if opened.format == "PNG":  # whose checksums of pixels Pillow does not look at
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    film = ImageOps.exif_transpose(opened)
    if min(film.size) < MIN_SIDE:
        found = f"{film.width} x {film.height} pixels"
        raise ValueError(f"has {found}: films have at least {MIN_SIDE} a side")
    if film.mode.startswith(("I", "F")):
        levels = np.asarray(film)
        check_levels(levels)
        film = Image.fromarray(np.round(levels / 257.0).astype(np.uint8))
    else:
        film = film.convert("L")
        # Of 16 bits with color or transparency Pillow keeps the upper 8.
        if data.startswith(b"\x89PNG") and data[24] == 16:
            check_levels(np.asarray(film, np.uint16) * 257)
    if geometry != "squash":
        sides = film.width, film.height
        side = max(sides) if geometry == "letterbox" else min(sides)
        left, top = (film.width - side) // 2, (film.height - side) // 2
        film = film.crop((left, top, left + side, top + side))
    film = film.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(film)[:, :, None]


def check_levels(levels):
    """Raises `ValueError` of a detector's 10, 12 or 14 bits in 16: they would be dark.

    A marker may be as bright as 16 bits are, the film have 12 all the same.
    """
    high, most = levels.max(), np.percentile(levels, 99)
    others = levels[levels < high].max(initial=0)
    is_dark = 0 < high < 16384 or 0 < most < 4096 or 0 < others < 16384
    if high > 65535 or is_dark:
        raise ValueError(
            f"has gray levels up to {high:g}, 99 % of them up to {most:g}: scale the "
            "film's to 0..65535"
        )


def main(paths):
    """Prints a line a film; 1 if one could not be read."""
    if not paths:
        sys.exit("usage: python answer.py FILM...")
    # On a GPU, XLA may abort the process in the pass that this leaves out (jax 0.11.2).
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")
    folder = pathlib.Path(__file__).parent
    about = json.loads((folder / "bundle.json").read_text())
    answer = load(folder)
    failed = False
    for path in paths:
        try:
            film = square(path, about["image_size"], about["geometry"])
        # Pillow raises SyntaxError and others of damaged files too.
        except Exception as error:
            is_other = "BytesIO" in str(error)  # Pillow names the object in memory
            reason = f"none of {', '.join(FORMATS)}" if is_other else error
            print(f"{path} cannot be read: {reason}", file=sys.stderr)
            failed = True
            continue
        found = answer(film[None])
        shares = zip(about["classes"], found["probabilities"][0], strict=True)
        told = ", ".join(f"{name} {share:.3f}" for name, share in shares)
        area = found.get("key_area")
        print(f"{path}: {told}" + ("" if area is None else f"; key area {area[0]}"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
