import pytest

from posttrain.pipeline.tables import Table, block, code, number, share, signed

TABLE = Table(("model", "accuracy"), (("base", "1.0 %"), ("名字 | x", "22.0 %")))


def test_markdown_keeps_its_columns_whatever_a_cell_holds():
    assert TABLE.markdown().splitlines() == [
        "| model | accuracy |",
        "| --- | ---: |",
        "| base | 1.0 % |",
        "| 名字 \\| x | 22.0 % |",
    ]


def test_the_terminal_aligns_wide_characters():
    assert TABLE.terminal().splitlines() == [
        "model     accuracy",
        "------------------",
        "base         1.0 %",
        "名字 | x    22.0 %",
    ]


def test_numbers_and_their_intervals():
    assert share(0.4167, (0.3225, 0.5174)) == "41.7 % [32.2, 51.7]"
    assert share(1.0) == "100.0 %"
    assert number(1.234, (-0.5, 2.0)) == "1.23 [-0.50, 2.00]"
    assert signed(0.0417, (-0.02, 0.11), percent=True) == "+4.2 points [-2.0, +11.0]"
    assert signed(-0.5, (-0.7, -0.3), percent=False) == "-0.50 [-0.70, -0.30]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", "`SELECT 1`"),
        ("a\n  b", "`a b`"),
        ("`x`", "`` `x` ``"),
        ("a``b", "```a``b```"),
        ("  ", "(empty)"),
        ("x" * 400, "`" + "x" * 299 + "…`"),
    ],
)
def test_a_model_cannot_break_out_of_inline_code(text, expected):
    assert code(text) == expected


def test_a_model_cannot_break_out_of_a_block():
    assert block("a\n```\nb").splitlines()[0] == "````"
