import pytest

from hapre_jax import json_file
from hapre_jax.errors import UserError


def test_json_round_trip(tmp_path):
    path = tmp_path / "a.json"
    json_file.write(path, {"a": [1, 0.1, None, "é"]})
    assert json_file.read(path) == {"a": [1, 0.1, None, "é"]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"a\.json is not JSON: .*recursion"):
        json_file.read(tmp_path / "a.json")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    json_file.write(path, {"a": 1})
    with pytest.raises(TypeError):
        json_file.write(path, {"a": object()})
    assert json_file.read(path) == {"a": 1}


@pytest.mark.parametrize("content", ["", '{"a": 1', "\x00\x00"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{path} is not JSON: .*; delete it"):
        json_file.read(path)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    path = tmp_path / "nowhere" / "a.json"
    with pytest.raises(UserError, match=f"{path} cannot be read: No such file"):
        json_file.read(path)
    with pytest.raises(UserError, match=f"{path} cannot be written: No such file"):
        json_file.write(path, {})
