"""Files that cannot be read: the message names the line and what to change."""

import pytest

from posttrain.config.documents import parse_scalar, read_document
from posttrain.errors import UserError


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.yaml", 'x: 1\npath: "E:\\qwen"\n', ["line 2", "Windows path", "'E:\\models\\qwen'"]),
        ("a.yaml", "x: 1\n\ty: 2\n", ["line 2", "spaces, not with tabs"]),
        ("a.yaml", "x: a: b\n", ["line 1", "in quotes"]),
        ("a.yaml", "x: 1\ny: 2\nx: 3\n", ["line 3", "`x` stands on line 1 already"]),
        ("a.yaml", "x: [1\n", ["not valid YAML"]),
        ("a.yaml", "", ["found nothing"]),
        ("a.yaml", "- a\n", ["found a list"]),
        ("a.yaml", "stage：sft\n", ["found plain text", "full-width colons"]),
        ("a.json", '{"x": 1,\n "y": }', ["line 2", "not valid JSON"]),
        ("a.json", '{"x": 1, "x": 2}', ["`x` stands there twice"]),
    ],
)
def test_malformed_files(tmp_path, name, text, parts):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="\n")
    with pytest.raises(UserError) as caught:
        read_document(path)
    assert str(caught.value).startswith(str(path))
    for part in parts:
        assert part in str(caught.value)


def test_missing_folder_and_encoding(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"no such file \(looked in"):
        read_document("surely/not/there.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_document(tmp_path)
    (tmp_path / "gbk.yaml").write_bytes("a: 1\nb: 中文\n".encode("gbk"))
    with pytest.raises(UserError, match="line 2: the file is not UTF-8"):
        read_document(tmp_path / "gbk.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfx: 1\r\ny: [2]\r\n")
    document = read_document(tmp_path / "a.yaml")
    assert document.data == {"x": 1, "y": [2]}
    assert document.where("y") == f"{tmp_path / 'a.yaml'}, line 2"
    assert document.where("z") == str(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("true", True), ("[a, b]", ["a", "b"]), ("a: b", "a: b"), ("", None), ("E:\\x", "E:\\x"), ("{", "{")],
)
def test_command_line_values(text, value):
    assert parse_scalar(text) == value
