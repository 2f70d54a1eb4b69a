import concurrent.futures
import errno
import os
import pickle
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
    "b/@eaDir/2.JPEG/SYNOPHOTO_THUMB_XL.jpg": b"small",
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
    assert tree.read("b/notes.txt") == b"text"
    assert tree.resolve("b/.DS_Store") is None


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_files_are_found_by_base_name(tmp_path, kind):
    members = MEMBERS | {"notes.txt": b"more", "b/other_notes.txt": b"", "notes": b""}
    if kind == "folder":
        root = write_folder(tmp_path, members)
    else:
        root = write_zip(tmp_path / "x.zip", members)
    tree = files.open_tree(str(root))
    assert tree.find("notes.txt") == ["b/notes.txt", "notes.txt"]
    assert tree.find("10.png") == ["b/10.png"]
    assert tree.find(".DS_Store") == tree.find("b/10.png") == tree.find("b") == []


def test_named_zip_is_preferred_unless_it_was_extracted(tmp_path):
    write_zip(tmp_path / "a.zip", {"x.png": b"from a"})
    write_zip(tmp_path / "b.zip", {"x.png": b"from b"})
    write_folder(tmp_path, {"other/y.png": b"y"})
    tree = files.open_tree(str(tmp_path), zip_names=("b.zip",))
    assert tree.read("x.png") == b"from b"
    write_folder(tmp_path, {"b/x.png": b"extracted"})
    tree = files.open_tree(str(tmp_path), zip_names=("b.zip",))
    assert tree.names() == ["b/x.png", "other/y.png"]


def test_a_folder_keeps_its_own_name_where_links_lead_to_it_too(tmp_path, caplog):
    members = {"b/1.png": b"1", "b/c/2.png": b"2", "a/0.png": b"0"}
    root = write_folder(tmp_path / "root", members)
    os.symlink(root / "b", root / "a" / "see_also")
    write_folder(tmp_path / "store", {"x.png": b"x"})
    os.makedirs(root / "a" / "deep")
    for link in ("a/deep/store", "z"):
        os.symlink(tmp_path / "store", root / link)
    tree = files.open_tree(str(root))
    assert tree.names() == ["a/0.png", "b/1.png", "b/c/2.png", "z/x.png"]
    assert tree.folders == ("a", "a/deep", "b", "b/c", "z")
    assert caplog.messages == [
        f"left out 2 link(s) in {root} to folders that are there already: a/see_also, "
        "a/deep/store"
    ]


def test_links_to_folders_are_followed_once(tmp_path):
    write_folder(tmp_path / "store", {"x.png": b"x"})
    root = write_folder(tmp_path / "root", {"y.png": b"y"})
    os.symlink(tmp_path / "store", root / "linked")
    os.symlink(root, root / "loop")
    tree = files.open_tree(str(root))
    assert tree.names() == ["linked/x.png", "y.png"]
    assert tree.read("linked/x.png") == b"x"


def test_zips_of_other_programs(tmp_path):
    members = {"./a/1.png": b"1", "b\\2.png": b"2", "/c/3.png": b"3", "d\\": b""}
    tree = files.open_tree(str(write_zip(tmp_path / "x.zip", members)))
    tree = pickle.loads(pickle.dumps(tree))
    assert tree.names() == ["a/1.png", "b/2.png", "c/3.png"]
    assert tree.folders[:3] == ("a", "b", "c")
    assert [tree.read(name) for name in tree.names()] == [b"1", b"2", b"3"]


def test_zips_that_are_left_out_are_named(tmp_path, caplog):
    members = {"../x/a.png": b"1", "b.png": b"2", "b/../../c.png": b"3"}
    tree = files.open_tree(str(write_zip(tmp_path / "x.zip", members)))
    assert tree.names() == ["b.png"]
    assert caplog.messages == [
        f"left out 2 entries of {tmp_path}/x.zip, which say that they lie outside of "
        "it: ../x/a.png, ../c.png"
    ]
    caplog.clear()
    members = {"a.png": b"1", "./a.png": b"2"}
    tree = files.open_tree(str(write_zip(tmp_path / "y.zip", members)))
    assert tree.read("a.png") == b"2"
    assert caplog.messages == [
        f"left out 1 entries of {tmp_path}/y.zip, which are called as later ones"
    ]
    caplog.clear()
    root = write_folder(tmp_path / "root", {"a/1.png": b"1", "a/x.zip": b"2"})
    write_folder(root, {"all.zip": b"what was unpacked"})
    members = {"a/1.png": b"1", "a/more.zip": b"2"}
    files.open_tree(str(write_zip(tmp_path / "z.zip", members)))
    assert caplog.messages == [
        f"left out 1 zip(s) in {tmp_path}/z.zip, whose films do not count until they "
        "are unpacked: a/more.zip"
    ]
    caplog.clear()
    assert files.open_tree(str(root)).names() == ["a/1.png"]
    assert caplog.messages == [
        f"left out 1 zip(s) in {root}, whose films do not count until they are "
        "unpacked: a/x.zip"
    ]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_dicom_files_without_an_extension(tmp_path, kind):
    film = bytes(128) + b"DICM"
    members = {"a/IM0001": film, "a/1.2.840.5": film, "a/README": b"text", "b": b""}
    members |= {"DICOMDIR": film, "a/IM0002.txt": film}
    members |= {"c/IM1.IMA": film, "c/x.dcm_1": film, "c/brain.img": b"no DICOM"}
    members |= {"d/J. Doe 1": film, "d/1.2.3.anon": film, "d/MR1.CR": film}
    if kind == "folder":
        root = write_folder(tmp_path, members)
    else:
        root = write_zip(tmp_path / "x.zip", members)
    tree = files.open_tree(str(root))
    assert tree.names() == [
        *("a/1.2.840.5", "a/IM0001", "c/IM1.IMA", "c/x.dcm_1"),
        *("d/1.2.3.anon", "d/J. Doe 1", "d/MR1.CR"),
    ]
    assert tree.read("a/IM0001") == film


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path, {"a/1.png": b"", "b/2.png": b""})
    scan = os.scandir

    def refuse(path):  # root may read everything
        if os.path.basename(path) == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    tree = files.open_tree(str(tmp_path))
    assert tree.names() == ["a/1.png"] and tree.folders == ("a", "b")
    assert caplog.messages == [f"{tmp_path}/b is left out: Permission denied"]


def test_paths_as_other_systems_write_them(tmp_path):
    composed, parted = "R\u00f6ntgen/1.png", "Ro\u0308ntgen/1.png"
    tree = files.open_tree(str(write_folder(tmp_path, {parted: b"", "a/b c.png": b""})))
    for path in ("a/b c.png", "./a//b c.png", "a\\b c.png", f"{tmp_path}/a/b c.png"):
        assert tree.resolve(path) == "a/b c.png"
    assert tree.resolve(composed) == tree.resolve(parted) == parted
    for path in ("a/B c.png", "../a/b c.png", "/a/b c.png", "a"):
        assert tree.resolve(path) is None


def test_tildes(tmp_path, monkeypatch):
    write_folder(tmp_path, {"~nobody/1.png": b"", "home/x/2.png": b""})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.open_tree("~nobody").names() == ["1.png"]  # not a user's home
    assert files.open_tree("~/x").names() == ["2.png"]
    for root in ("~no such user/x", "x" * 5000):
        with pytest.raises(errors.UserError, match="does not exist"):
            files.open_tree(root)


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


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")]
)
def test_want_of_the_machine_is_no_fault_of_a_file(tmp_path, monkeypatch, error):
    """A film that is left out of a division for it would be left out for ever."""

    def read(name):
        raise error

    tree = files.open_tree(str(write_folder(tmp_path / "tree", {"a.png": b"a"})))
    monkeypatch.setattr(tree, "_read", read)
    with pytest.raises(type(error)) as raised:
        tree.read("a.png")
    assert not isinstance(raised.value, errors.UserError)
