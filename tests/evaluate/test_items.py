import dataclasses

from posttrain.data.formats import ChatExample, Message, PairExample, PromptExample, TextExample
from posttrain.data.template import EncodedRow
from posttrain.evaluate.items import digest_of, id_of_prompt, ids_of_examples, ids_of_rows, numbered

ASK = (Message("user", "how many?"),)


def test_a_name_depends_on_what_is_asked_and_right_and_not_on_its_place():
    one = PromptExample(prompt=ASK, extras={"reference": "3", "note": "x"}, where="a.json, row 1")
    moved = PromptExample(prompt=ASK, extras={"reference": "3", "note": "y"}, where="b.json, row 7")
    others = [
        PromptExample(prompt=ASK, extras={"reference": "4"}),
        PromptExample(prompt=(Message("user", "how much?"),), extras={"reference": "3"}),
        PromptExample(prompt=ASK, extras={"reference": "3", "db": "two.sqlite"}),
    ]
    (name,) = ids_of_examples([one])
    assert ids_of_examples([moved]) == (name,)
    assert len({name, *ids_of_examples(others)}) == 4
    assert name == id_of_prompt(ASK, "3")


def test_names_of_all_kinds_of_examples():
    examples = [
        TextExample(text="a"),
        ChatExample(messages=(*ASK, Message("assistant", "3"))),
        PairExample(prompt=ASK, chosen="3", rejected="4"),
        PairExample(prompt=ASK, chosen="4", rejected="3"),
    ]
    assert len(set(ids_of_examples(examples))) == 4
    placed = [dataclasses.replace(example, where=f"row {i}") for i, example in enumerate(examples)]
    assert ids_of_examples(placed) == ids_of_examples(examples)


def test_repeated_items_are_told_apart():
    assert numbered(["a", "b", "a", "a"]) == ("a", "b", "a-2", "a-3")


def test_blocks_are_named_by_their_tokens():
    rows = [EncodedRow([1, 2], [False, True]), EncodedRow([1, 2], [True, True]), EncodedRow([1, 3], [False, True])]
    assert len(set(ids_of_rows(rows))) == 3


def test_a_set_of_items_has_one_name_in_any_order():
    assert digest_of(["a", "b"]) == digest_of(["b", "a"]) != digest_of(["a"])
