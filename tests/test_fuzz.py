"""Every parser, given anything: it works, or says so in one `UserError`.

300 cases of each, always the same; with `-m slow` 10,000, each time others.
"""

import functools
import io
import json
import os
import pathlib
import random
import re
import struct
import tempfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_damaged_files import ENCODERS

from hapre_jax import cli, config, config_file, log, predictions, pretrained
from hapre_jax.data import (
    csv_tables,
    dicom,
    files,
    folder,
    images,
    inputs,
    phantom,
    prepared,
    splits,
)
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures

ROOT = pathlib.Path(__file__).parents[1]
OPTIONS = config.options(config.Config())

# Surrogates are what names of files come with that are not UTF-8.
text = st.text(st.characters(exclude_characters="\0"), max_size=20)
hostile = st.one_of(
    text,
    st.sampled_from(
        ["", "..", "/", "../../x.png", "/etc/passwd", "nan", "-inf", "1e999", "0x10"]
        + ["true", "none", "9" * 5000, "a/../../b.png", "~root", "*", "[", "\n", "%s"]
        + ["${HOME}", "../x.dcm", "C:\\x.png", "x" * 300 + ".png", ".", "\ufeff", "--"]
    ),
    st.floats().map(str),
    st.integers().map(str),
)


@pytest.fixture(params=[300, pytest.param(10_000, marks=pytest.mark.slow)])
def fuzz(request):
    """Calls a function with many values of a strategy; each may be a `UserError`."""
    count = request.param

    def run(strategy, parse, *, share=1.0):
        @settings(
            max_examples=int(share * count),
            deadline=None,
            derandomize=count == 300,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        @given(strategy)
        def check(value):
            try:
                parse(value)
            except UserError as error:
                assert str(error).strip()

        check()

    return run


def damaged(*originals):
    """Files with some bytes changed, cut out, put in or cut off at the end."""

    def damage(choice):
        data, seed, count = choice
        rng, data = random.Random(seed), bytearray(data)
        for _ in range(count):
            place = rng.randrange(len(data) + 1)
            kind = rng.randrange(4)
            if kind == 0 and place < len(data):
                data[place] = rng.randrange(256)
            elif kind == 1:
                del data[place : place + rng.randrange(1, 9)]
            elif kind == 2:
                data[place:place] = rng.randbytes(rng.randrange(1, 9))
            else:
                del data[max(place, len(data) // 2) :]
        return bytes(data)

    numbers = st.tuples(
        st.sampled_from(originals), st.integers(0, 2**32), st.integers(1, 8)
    )
    return st.one_of(numbers.map(damage), st.binary(max_size=200))


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")
    }


# Texts.


def test_flags(fuzz):
    flags = st.sampled_from([f"--{name}" for name in OPTIONS] + ["--workdir", "--conf"])
    pair = st.one_of(
        st.tuples(flags, hostile),
        st.tuples(flags, hostile).map(lambda pair: ("=".join(pair),)),
        st.tuples(hostile),
    )

    def parse(pairs):
        arguments = [word for pair in pairs for word in pair]
        if not {"--help", "-h", "--config"} & {word[:8] for word in arguments}:
            cli.parse(
                arguments,
                program="p",
                description="d",
                default_config="configs/phantom.py",
            )

    # Each makes the program's whole parser.
    fuzz(st.lists(pair, max_size=4), parse, share=0.1)


def test_values_of_fields(fuzz):
    values = st.dictionaries(st.sampled_from(list(OPTIONS)), hostile, max_size=3)
    fuzz(values, lambda texts: config.override_all(config.Config(), texts))


def test_configs(fuzz, tmp_path):
    path = tmp_path / "config.json"
    json_value = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), hostile),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(hostile, inner, max_size=3)
        ),
        max_leaves=6,
    )
    true = config.to_dict(config.Config())
    keys = [*true, *(key for value in true.values() for key in _keys(value))]

    def parse(change):
        where, name, value = change
        values = json.loads(json.dumps(true))
        target = values[where] if isinstance(values.get(where), dict) else values
        target[name] = value
        text = json.dumps(values)
        path.write_text(text if len(name) % 5 else text[: len(text) // 2])
        config_file.load(str(path))

    fuzz(st.tuples(st.sampled_from(keys), st.sampled_from(keys), json_value), parse)


def _keys(value):
    return list(value) if isinstance(value, dict) else []


TABLES = {
    "groups": b"path,group\nnormal/1.png,a\nill/2.png,b\n",
    "splits": b"path,sha256,label,group,split\na,0,x,g,train\nb,1,x,h,test\n"
    b"c,2,y,i,validation\n",
    "predictions": b"path,group,view,label,answer,p_a,p_b\nx,g,,a,b,0.25,0.75\n",
    "records": b'{"kind": "train", "step": 1}\n{"kind": "validation", "step": 2}\n',
    "index": b'{"name": "a", "variant": "", "classes": ["x", "y"]}\n',
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(fuzz, tmp_path, kind):
    path = tmp_path / "table"
    read = {
        "groups": lambda: csv_tables.parse(
            path.read_bytes(), ("path", "group"), name="groups.csv"
        ),
        "splits": lambda: splits.read(path),
        "predictions": lambda: predictions.read(path),
        "records": lambda: log.read(path),
        "index": lambda: (prepared.read_header(path), prepared.read_index(path)),
    }[kind]

    def parse(data):
        path.write_bytes(data)
        read()

    fuzz(damaged(TABLES[kind], TABLES[kind] * 3), parse)


def test_folders(fuzz, tmp_path):
    """Names of folders and films, and what a table calls them."""
    name = hostile.map(lambda name: name.replace("/", "-")[:60]).filter(
        lambda name: name.strip(".") and "\n" not in name
    )

    def parse(drawn):
        films, table = drawn
        with tempfile.TemporaryDirectory(dir=tmp_path) as root:
            for label, film in films:
                path = pathlib.Path(os.fsencode(f"{root}/{label}/{film}.png").decode())
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
            table_path = pathlib.Path(root, "table.csv")
            lines = [",".join(row) for row in [("path", "label"), *table]]
            table_path.write_text("\n".join(lines), errors="surrogateescape")
            for scan in (
                lambda: folder.scan(root),
                lambda: folder.scan_table(str(table_path)),
            ):
                try:
                    scan()
                except UserError:
                    pass

    encodable = name.filter(lambda name: name.encode(errors="ignore").decode() == name)
    films = st.lists(st.tuples(encodable, encodable), min_size=1, max_size=4)
    table = st.lists(st.tuples(hostile, hostile), max_size=3)
    cells = table.map(
        lambda rows: [
            tuple(cell.encode(errors="ignore").decode() for cell in row) for row in rows
        ]
    )
    fuzz(st.tuples(films, cells), parse)


# Zips.


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def read_all_of(path):
    tree = files.open_tree(str(path))
    for name in tree.names():
        try:
            tree.read(name)
        except UserError:
            pass


def test_zips(fuzz, tmp_path):
    path = tmp_path / "inside" / "x.zip"
    path.parent.mkdir()
    whole = zip_of([("a/1.png", b"one" * 50), ("b/2.png", b"two"), ("g.csv", b"a\n")])

    def parse(data):
        path.write_bytes(data)
        read_all_of(path)

    fuzz(damaged(whole), parse)
    assert list(snapshot(tmp_path)) == ["inside", "inside/x.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_in_zips(fuzz, tmp_path):
    """Pictures made of films stay below their folder, whatever the films are called."""
    path, out = tmp_path / "x.zip", tmp_path / "out" / "crops"
    out.mkdir(parents=True)
    picture = Image.new("L", (1, 1))
    name = st.lists(hostile, min_size=1, max_size=3).map("/".join)
    names = name.filter(lambda name: name.encode(errors="ignore").decode() == name)

    def parse(members):
        path.write_bytes(zip_of([(f"{name}.png", b"") for name in members]))
        for film in inputs.find([str(path)]):
            made = out / figures.picture_name(film.name, {})
            made.parent.mkdir(parents=True, exist_ok=True)
            picture.save(made)
            made.resolve().relative_to(out)
            made.unlink()

    fuzz(st.lists(names, min_size=1, max_size=3), parse)
    assert {name.split("/")[0] for name in snapshot(tmp_path)} == {"x.zip", "out"}
    assert os.listdir(tmp_path / "out") == ["crops"]


def _bomb(kind):
    """64 MiB in a zip of a few KiB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("b.png", b"fine")
        archive.writestr("bomb.png", bytes(64 << 20))
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("is_honest", [True, False])
def test_zip_bombs(tmp_path, monkeypatch, kind, is_honest):
    data = _bomb(kind)
    assert len(data) < 1 << 17
    if not is_honest:  # the size in the directory at the end of the file
        place = data.rindex(struct.pack("<I", 64 << 20))
        data[place : place + 4] = struct.pack("<I", 100)
    (tmp_path / "x.zip").write_bytes(data)
    monkeypatch.setattr(dicom, "MAX_BYTES", 2 << 20)
    tree = files.open_tree(str(tmp_path / "x.zip"))
    tracemalloc.start()
    said = "more than 2 MiB" if is_honest else "bomb.png .* cannot be read: Bad CRC"
    with pytest.raises(UserError, match=said):
        tree.read("bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of LZMA, zipfile unpacks 4 KiB at least, which may be most of this small bomb.
    if kind == zipfile.ZIP_DEFLATED or is_honest:
        assert peak < 10 << 20
    assert tree.read("b.png") == b"fine"


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    tree = files.open_tree(str(tmp_path))
    for name in ("b.png", "c.png"):
        with pytest.raises(UserError, match=f"^{name} in .* cannot be read: it is no"):
            tree.read(name)
        (film,) = inputs.find([str(tmp_path / name)])
        with pytest.raises(UserError, match="no regular file"):
            film.open()


# Films and weights.


@functools.cache
def films():
    pixels = phantom.make(0, size=96).image[::3, ::3]
    return {
        name: encode(np.ascontiguousarray(pixels)) for name, encode in ENCODERS.items()
    }


@pytest.mark.parametrize("kind", ["raw.dcm", "rle.dcm", "deflated.dcm"])
def test_dicom(fuzz, kind):
    film = films()[kind]
    # The header is where the meaning is; most bytes are pixels.
    damage = damaged(film[:900]).map(lambda head: head + film[900:])
    fuzz(damage, lambda data: images.open_gray(data, name="film.dcm"), share=1 / 3)


TAGS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "NumberOfFrames"]
TAGS += ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"]
TAGS += ["PhotometricInterpretation", "SamplesPerPixel", "PixelRepresentation"]
TAGS += ["VOILUTFunction", "PixelData", "PresentationLUTShape"]


def test_dicom_tags(fuzz):
    import pydicom

    film = films()["raw.dcm"]
    value = st.one_of(
        st.none(),
        st.integers(-(2**15), 2**16 - 1),
        st.floats(allow_nan=False, width=16).map(str),
        st.sampled_from(["", "MONOCHROME1", "RGB", "SIGMOID", "LINEAR", "1\\2", "x"]),
        st.binary(max_size=8),
    )

    def parse(changes):
        header = pydicom.dcmread(io.BytesIO(film))
        buffer = io.BytesIO()
        try:
            for tag, value in changes.items():
                if value is None:
                    delattr(header, tag)
                else:
                    setattr(header, tag, value)
            header.save_as(buffer)
        except Exception:  # what pydicom does not write
            return
        images.open_gray(buffer.getvalue(), name="film.dcm")

    changes = st.dictionaries(st.sampled_from(TAGS), value, min_size=1, max_size=3)
    with pytest.MonkeyPatch.context() as patch:
        for mode in ("reading_validation_mode", "writing_validation_mode"):
            patch.setattr(pydicom.config.settings, mode, pydicom.config.IGNORE)
        patch.setattr("warnings.warn", lambda *arguments, **options: None)
        fuzz(changes, parse)


def test_a_deflated_dicom_bomb(monkeypatch):
    film = films()["deflated.dcm"]
    start = 144 + int.from_bytes(film[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = film[:start] + packer.compress(bytes(8 << 20)) + packer.flush()
    monkeypatch.setattr(dicom, "MAX_BYTES", 2 << 20)
    with pytest.raises(UserError, match="it unpacks to more than 2 MiB"):
        dicom.open_gray(bomb, name="film.dcm")
    dicom.open_gray(film, name="film.dcm")


@pytest.mark.parametrize("kind", ["gray.jpeg", "8 bit.png", "lzw.tiff", "gray.bmp"])
def test_pictures(fuzz, kind):
    film = damaged(films()[kind])
    fuzz(film, lambda data: images.open_gray(data, name="film"), share=1 / 4)


@pytest.mark.filterwarnings("ignore")
def test_weights(fuzz, tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}
    whole = safetensors.numpy.save(tensors)

    def parse(data):
        path.write_bytes(data)
        pretrained.read(path)

    fuzz(damaged(whole), parse)


def test_nothing_unpickles():
    """A pickle may run any program; PyTorch's reader of tensors alone does not."""
    unsafe = re.compile(
        r"pickle|joblib|shelve|marshal|allow_pickle|yaml\.|\beval\(|read_pickle"
        r"|torch\.load\((?![^)]*weights_only=True)"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("hapre_jax", "launch")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if unsafe.search(line) and not line.strip().startswith(("#", "A ", "Threads"))
    ]
    assert found == []
