import concurrent.futures
import os
import zipfile

import pytest

from hapre_jax import errors
from hapre_jax.data import files

MEMBERS = {
    "b/2.JPEG": b"two",
    "b/10.png": b"ten",
    "a.tiff": b"a",
    "b/notes.txt": b"text",
    "b/.DS_Store": b"",
    ".hidden/3.png": b"three",
    "__MACOSX/b/._2.JPEG": b"fork",
    "b/._2.JPEG": b"fork",
}
NAMES = ["a.tiff", "b/10.png", "b/2.JPEG"]


def write_folder(root, members):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "folder with one zip"])
def test_only_image_files_are_listed_in_order(tmp_path, kind):
    if kind == "folder":
        root = write_folder(tmp_path / "tree", MEMBERS)
        (root / "empty").mkdir()
    else:
        root = write_zip(tmp_path / "some.zip", MEMBERS | {"empty/": b""})
        root = root if kind == "zip" else tmp_path
    tree = files.open_tree(str(root))
    assert tree.names() == NAMES
    assert [tree.read(name) for name in NAMES] == [b"a", b"ten", b"two"]
    assert tree.folders == ("b", "empty")
    assert tree.has("b/notes.txt") and tree.read("b/notes.txt") == b"text"
    assert not tree.has("b/.DS_Store")


def test_named_zip_is_preferred_unless_it_was_extracted(tmp_path):
    write_zip(tmp_path / "a.zip", {"x.png": b"from a"})
    write_zip(tmp_path / "b.zip", {"x.png": b"from b"})
    write_folder(tmp_path, {"other/y.png": b"y"})
    tree = files.open_tree(str(tmp_path), zip_names=("b.zip",))
    assert tree.read("x.png") == b"from b"
    write_folder(tmp_path, {"b/x.png": b"extracted"})
    tree = files.open_tree(str(tmp_path), zip_names=("b.zip",))
    assert tree.names() == ["b/x.png", "other/y.png"]


def test_links_to_folders_are_followed_once(tmp_path):
    write_folder(tmp_path / "store", {"x.png": b"x"})
    root = write_folder(tmp_path / "root", {"y.png": b"y"})
    os.symlink(tmp_path / "store", root / "linked")
    os.symlink(root, root / "loop")
    tree = files.open_tree(str(root))
    assert tree.names() == ["linked/x.png", "y.png"]
    assert tree.read("linked/x.png") == b"x"


def test_threads_share_a_zip(tmp_path):
    members = {f"{i}.png": bytes([i]) * 20_000 for i in range(40)}
    path = write_zip(tmp_path / "x.zip", members, zipfile.ZIP_DEFLATED)
    tree = files.open_tree(str(path))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(tree.read, members)) == list(members.values())


def not_there(path):
    return path / "nothing"


def empty_folder(path):
    return path


def text_named_zip(path):
    (path / "x.zip").write_bytes(b"not a zip at all")
    return path / "x.zip"


def cut_zip(path):
    whole = write_zip(path / "x.zip", {"a.png": b"a" * 1000}).read_bytes()
    (path / "x.zip").write_bytes(whole[:500])
    return path / "x.zip"


def zip_without_images(path):
    return write_zip(path / "x.zip", {"a.txt": b"a"})


def two_zips(path):
    write_zip(path / "one.zip", {"a.png": b"a"})
    write_zip(path / "two.zip", {"a.png": b"a"})
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (not_there, "nothing does not exist"),
        (empty_folder, "holds no image"),
        (text_named_zip, "x.zip is not a readable zip"),
        (cut_zip, "x.zip is not a readable zip"),
        (zip_without_images, "x.zip holds no image"),
        (two_zips, r"several zips \(one.zip, two.zip\)"),
    ],
)
def test_wrong_roots_are_named(tmp_path, make, said):
    with pytest.raises(errors.UserError, match=said) as caught:
        files.open_tree(str(make(tmp_path)))
    assert "\n" not in str(caught.value)


def test_no_root_is_not_the_working_folder():
    with pytest.raises(errors.UserError, match="data.root is empty"):
        files.open_tree("")


def test_unreadable_member_is_named(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"payload" * 10, "b.png": b"fine"})
    path.write_bytes(path.read_bytes().replace(b"payload", b"damaged", 1))
    tree = files.open_tree(str(path))
    with pytest.raises(errors.UserError, match="a.png in .*x.zip cannot be read.*CRC"):
        tree.read("a.png")
    assert tree.read("b.png") == b"fine"
    root = write_folder(tmp_path / "tree", {"a.png": b"a"})
    tree = files.open_tree(str(root))
    (root / "a.png").unlink()
    with pytest.raises(errors.UserError, match="a.png in .*tree cannot be read"):
        tree.read("a.png")
