import gzip
import json

import pytest

from posttrain.data.formats import Layout, chat_example, guess_layout, pair_example, text_example
from posttrain.data.sources import read_rows, resolve_dataset
from posttrain.errors import UserError

ROWS = [{"instruction": "你好", "output": "line\u2028break"}, {"instruction": "b", "output": "c"}]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


LIST = json.dumps(ROWS, ensure_ascii=False, indent=1)
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", LIST),
        ("a.jsonl", LINES + "\n"),
        ("a.jsonl", LINES.replace("\n", "\r\n\r\n")),
        ("list_in.jsonl", LIST),
        ("lines_in.json", LINES),
        ("bom.json", "\ufeff" + LIST),
        ("a.csv", 'instruction,output\n你好,"line\u2028break"\nb,c\n'),
        ("a.tsv", "instruction\toutput\n你好\tline\u2028break\nb\tc\n"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_same_rows_from_every_kind_of_file(tmp_path, name, text, zipped):
    path = write(tmp_path / name, text)
    if zipped:
        packed = path.with_name(name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    assert read_rows(path) == ROWS


def test_a_text_file_is_one_row_per_line(tmp_path):
    path = write(tmp_path / "a.txt", "first\n\n  second \n")
    assert read_rows(path) == [{"text": "first"}, {"text": "  second "}]


def test_a_csv_cell_keeps_its_line_breaks(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt,response\n"a\nb",c\n')
    assert read_rows(path) == [{"prompt": "a\nb", "response": "c"}]


def test_a_folder_gives_the_asked_split_only(tmp_path):
    write(tmp_path / "train-0.jsonl", '{"text": "a"}\n')
    write(tmp_path / "train-1.jsonl", '{"text": "b"}\n')
    write(tmp_path / "test.jsonl", '{"text": "c"}\n')
    assert [row["text"] for row in read_rows(tmp_path)] == ["a", "b"]
    assert [row["text"] for row in read_rows(tmp_path, split="test")] == ["c"]
    with pytest.raises(UserError, match="no split 'other'; its files are named after test, train"):
        read_rows(tmp_path, split="other")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"\n', ["a.jsonl, line 3", "malformed JSON"]),
        ("a.json", '[\n {"text": "a"},\n {"text" "b"}\n]', ["a.json, line 3", "malformed JSON"]),
        ("a.json", '{"text":\n', ["a.json, line 2", "malformed JSON"]),
        ("a.json", '[{"text": "a"}, 3]', ["a.json, row 2", "object", "int"]),
        ("a.jsonl", '{"text": "a"}\n"b"\n', ["a.jsonl, line 2", "object", "str"]),
        ("a.json", '{"version": 1, "data": []}', ["a.json", "list of rows", "version, data"]),
        ("a.json", "[]", ["a.json", "empty"]),
        ("a.jsonl", " \n", ["a.jsonl", "empty"]),
        ("a.csv", "prompt,response\n", ["a.csv", "empty"]),
        ("a.csv", "prompt,response\na,b\na,b,c\n", ["a.csv, line 3", "more cells"]),
        ("a.xlsx", "PK", ["a.xlsx", ".xlsx", ".jsonl"]),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, words):
    path = write(tmp_path / name, text)
    with pytest.raises(UserError) as caught:
        read_rows(path)
    for word in words:
        assert word in str(caught.value)


def test_text_in_another_encoding_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "中文"}\n', encoding="gbk")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not UTF-8"):
        read_rows(path)


def test_a_broken_gzip_file_is_a_user_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}' * 50)[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(path)


def test_a_missing_file_comes_with_near_names(tmp_path):
    write(tmp_path / "train_clean.json", LIST)
    with pytest.raises(UserError, match=r"no such file.*train_clean\.json"):
        read_rows(tmp_path / "train_claen.json")
    with pytest.raises(UserError, match="no folder"):
        read_rows(tmp_path / "nowhere" / "a.json")


def test_a_dataset_is_found_by_path_by_name_and_beside_the_others(tmp_path, monkeypatch):
    path = write(tmp_path / "train_clean.json", LIST)
    assert resolve_dataset(str(path), "elsewhere").path == path
    assert resolve_dataset("train_clean.json", tmp_path).path == path
    assert resolve_dataset("train_clean", tmp_path).path == path
    monkeypatch.chdir(tmp_path)
    assert resolve_dataset("./train_clean.json", "elsewhere").path.samefile(path)


def info(tmp_path, **entries):
    write(tmp_path / "dataset_info.json", json.dumps(entries))


def test_an_entry_says_where_and_how(tmp_path):
    path = write(tmp_path / "a.json", LIST)
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "q", "assistant_tag": "a"}
    info(
        tmp_path,
        plain={"file_name": "a.json", "num_samples": 7},
        docs={"file_name": "a.json", "columns": {"prompt": "text"}},
        pairs={"file_name": "a.json", "ranking": True},
        chats={"file_name": "a.json", "formatting": "sharegpt", "tags": tags},
        openai={"file_name": str(path), "formatting": "openai"},
    )
    plain = resolve_dataset("plain", tmp_path)
    assert (plain.path, plain.layout, plain.num_samples) == (path, None, 7)
    assert resolve_dataset("docs", tmp_path).layout.columns == {"prompt": "text"}
    pairs = {"prompt": "instruction", "query": "input", "response": "output"}
    assert resolve_dataset("pairs", tmp_path).layout.columns == pairs
    chats = resolve_dataset("chats", tmp_path).layout
    assert chats.columns == {"messages": "conversations"}
    assert (chats.role_tag, chats.content_tag, chats.roles["q"], chats.roles["a"]) == (
        "who",
        "says",
        "user",
        "assistant",
    )
    openai = resolve_dataset("openai", tmp_path).layout
    assert (openai.columns, openai.role_tag, openai.content_tag) == ({"messages": "messages"}, "role", "content")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plian", ["unknown dataset 'plian'", "plain"]),
        ("hub", ["dataset 'hub'", "script_url", "file_name"]),
        ("nothing", ["dataset 'nothing'", "no `file_name`"]),
        ("gone", ["dataset 'gone'", "no such file", "plain.json"]),
        ("odd", ["dataset 'odd'", "alpcaa"]),
        ("many", ["dataset 'many'", "num_samples"]),
        ("data/other.json", ["data/other.json", "no such file"]),
    ],
)
def test_a_bad_entry_or_name_says_what_to_write(tmp_path, name, words):
    write(tmp_path / "plain.json", LIST)
    info(
        tmp_path,
        plain={"file_name": "plain.json"},
        hub={"script_url": "somewhere.py"},
        nothing={"ranking": True},
        gone={"file_name": "plan.json"},
        odd={"file_name": "plain.json", "formatting": "alpcaa"},
        many={"file_name": "plain.json", "num_samples": "10"},
    )
    with pytest.raises(UserError) as caught:
        resolve_dataset(name, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_malformed_index_is_named_with_its_line(tmp_path):
    write(tmp_path / "dataset_info.json", '{\n "a": {"file_name": "a.json",}\n}')
    with pytest.raises(UserError, match=r"dataset_info\.json, line 2"):
        resolve_dataset("a", tmp_path)


@pytest.mark.parametrize(
    ("name", "read", "count"),
    [
        ("identity", chat_example, 91),
        ("alpaca_zh_demo", chat_example, 1000),
        ("dpo_zh_demo", pair_example, 300),
        ("kto_en_demo", chat_example, 300),
        ("wiki_demo", text_example, 30),
    ],
)
def test_llama_factory_demo_data_are_read_whole(demo_folder, name, read, count):
    spec = resolve_dataset(name, demo_folder)
    rows = read_rows(spec.path)
    layout = spec.layout or guess_layout(rows[0], name)
    assert isinstance(layout, Layout)
    examples = [read(row, layout, f"{name}, row {i + 1}") for i, row in enumerate(rows)]
    assert len(examples) == count
    if name == "identity":
        assert "{{name}}" in examples[0].messages[-1].content
