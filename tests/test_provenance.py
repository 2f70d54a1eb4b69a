"""The commit of a checkout, as git itself says it."""

import importlib.metadata
import subprocess

from hapre_jax import provenance


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_commit_says_where_files_were_changed(tmp_path):
    git(tmp_path, "init")
    file = tmp_path / "a.py"
    file.write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a release, which is no commit")
    first = git(tmp_path, "rev-parse", "--short", "HEAD").strip()
    assert provenance.commit(tmp_path) == first
    file.write_text("2\n")
    assert provenance.commit(tmp_path) == first  # as when the program began
    provenance.commit.cache_clear()
    assert provenance.commit(tmp_path) == f"{first}-dirty"


def test_what_is_no_checkout_has_no_commit(tmp_path, monkeypatch):
    git(tmp_path, "init")
    installed = tmp_path / "site-packages"  # below a checkout of something else
    installed.mkdir()
    assert provenance.commit(installed) is None
    assert provenance.commit(tmp_path) is None  # nothing was ever committed
    monkeypatch.setenv("PATH", "")
    provenance.commit.cache_clear()
    assert provenance.commit(tmp_path) is None  # there is no git


def test_versions_are_those_that_are_installed():
    found = provenance.versions()
    assert list(found) == ["jax", "flax", "optax", "numpy"]
    for name, version in found.items():
        assert version == importlib.metadata.version(name)
