"""Columns of a terminal: what is wide counts twice, and no line is longer than it may be."""

import pytest

from posttrain.serve.columns import columns_of, side_by_side, wrapped


@pytest.mark.parametrize(
    ("text", "columns"),
    [("abc", 3), ("你好", 4), ("ｆ", 2), ("e\u0301", 1), ("한글", 4), ("🙂", 2), ("a\u200db", 2), ("", 0)],
)
def test_columns_of_a_text(text, columns):
    assert columns_of(text) == columns


@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("one two three", 8, ["one two", "three"]),
        ("a\n\nb", 4, ["a", "", "b"]),
        ("你好世界", 5, ["你好", "世界"]),
        ("你好，世界", 6, ["你好，", "世界"]),
        ("你好，世界", 5, ["你", "好，", "世界"]),  # no line begins with a comma
        ("extraordinary", 5, ["extra", "ordin", "ary"]),
        ("it’s “so”", 6, ["it’s", "“so”"]),
        ("  x", 10, ["  x"]),
        ("SQL 查询语句", 8, ["SQL 查询", "语句"]),
    ],
)
def test_lines_are_broken_where_they_may_be(text, columns, lines):
    assert wrapped(text, columns) == lines


def test_every_line_fits_whatever_the_text_is():
    text = "混合 mixed文字 with longwordsthatneverend 和标点，、。!? 🙂🙂🙂 e\u0301e\u0301 " * 3
    for columns in (2, 3, 5, 17, 40):
        lines = wrapped(text, columns)
        assert max(map(columns_of, lines)) <= columns
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_the_middle_stands_in_one_column():
    table = side_by_side("你好\nabc", "one\ntwo\nthree", 23)
    assert table == "你好       | one\nabc        | two\n           | three\n"
    assert {columns_of(line[: line.index("|")]) for line in table.splitlines()} == {11}
