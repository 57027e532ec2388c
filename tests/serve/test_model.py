"""ChatModel: what it answers is what the model says, however it is decoded."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.models.export import export_model
from posttrain.serve import model as serve_model
from posttrain.serve.model import ChatModel

QUESTION = [{"role": "user", "content": "How many rows?"}]


def settings(base, **keys):
    return {"model_name_or_path": str(base), "max_new_tokens": 12, **keys}


@pytest.fixture(scope="module")
def chat_model(base):
    return ChatModel(settings(base))


def library_answer(model, tokenizer, messages, count=12):
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        rows = model.generate(prompt, do_sample=False, max_new_tokens=count, pad_token_id=1)
    return rows[0, prompt.shape[1] :].tolist(), prompt.shape[1]


def test_greedy_answers_are_those_of_transformers(base, chat_model):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokens, length = library_answer(model, tokenizer, QUESTION)
    (response,) = chat_model.chat(QUESTION, do_sample=False)
    assert response.response_text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert (response.response_length, response.prompt_length) == (len(tokens), length)
    assert response.finish_reason == ("stop" if tokens[-1] == 1 else "length")


def test_adapters_are_worn(base, adapter, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    worn = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    tokens, _ = library_answer(worn, tokenizer, QUESTION)
    expected = tokenizer.decode(tokens, skip_special_tokens=True)
    keys = {"adapter_name_or_path": str(adapter), "do_sample": False}
    (response,) = ChatModel(settings(base, **keys)).chat(QUESTION)
    assert response.response_text == expected
    values = {**settings(base), "adapter_name_or_path": str(adapter), "export_dir": str(tmp_path / "merged")}
    merged = export_model(load_config(values, command="export"))
    assert ChatModel(settings(merged, do_sample=False)).chat(QUESTION)[0].response_text == expected


def test_streamed_pieces_are_the_answer(base):
    # the same seed and the same call: the same random numbers, through two decoders
    for keys in ({"temperature": 1.5, "top_p": 1.0}, {"repetition_penalty": 1.3, "min_new_tokens": 6}, {"seed": 3}):
        whole = ChatModel(settings(base, **keys)).chat(QUESTION)[0].response_text
        pieces = list(ChatModel(settings(base, **keys)).stream_chat(QUESTION))
        assert "".join(pieces) == whole
        assert all(pieces)


def test_an_answer_ends_at_the_end_of_turn(chat_model):
    responses = chat_model.chat(
        QUESTION, num_return_sequences=24, temperature=3.0, top_p=1.0, top_k=0, max_new_tokens=40
    )
    ended = [response for response in responses if response.finish_reason == "stop"]
    cut = [response for response in responses if response.finish_reason == "length"]
    assert ended
    assert cut
    assert all(response.response_length == 40 for response in cut)
    assert all("<|im_end|>" not in response.response_text for response in responses)
    assert len({response.response_text for response in responses}) > 20


def test_calls_differ_and_repeat_with_the_seed(base):
    keys = {"temperature": 2.0, "top_p": 1.0, "top_k": 0}
    one, two = ChatModel(settings(base, **keys)), ChatModel(settings(base, **keys))
    first, second = one.chat(QUESTION)[0], one.chat(QUESTION)[0]
    assert first != second
    assert [two.chat(QUESTION)[0], two.chat(QUESTION)[0]] == [first, second]


def test_a_system_message_is_put_in_front(chat_model):
    with_system = [{"role": "system", "content": "Be terse."}, *QUESTION]
    assert chat_model.chat(QUESTION, "Be terse.", do_sample=False) == chat_model.chat(with_system, do_sample=False)
    assert chat_model.chat(QUESTION)[0].prompt_length < chat_model.chat(with_system)[0].prompt_length
    with pytest.raises(UserError, match="system message already"):
        chat_model.chat(with_system, "Be terse.")


def test_a_model_that_cannot_be_packed_still_answers(base, monkeypatch):
    expected = ChatModel(settings(base)).chat(QUESTION, do_sample=False)
    monkeypatch.setattr(serve_model, "prepare_trunk", lambda model: False)
    said = []
    plain = ChatModel(settings(base), notify=said.append)
    assert plain.chat(QUESTION, do_sample=False) == expected
    assert "".join(plain.stream_chat(QUESTION, do_sample=False)) == expected[0].response_text
    assert plain.chat(QUESTION, do_sample=False, num_return_sequences=2) == expected * 2
    assert len({r.response_text for r in plain.chat(QUESTION, num_return_sequences=6, temperature=3.0, top_k=0)}) > 1
    assert any("cannot be packed" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("messages", "generation", "sentence"),
    [
        (QUESTION, {"temprature": 1.0}, "did you mean temperature"),
        (QUESTION, {"temperature": 0}, "temperature"),
        (QUESTION, {"max_new_tokens": "many"}, "max_new_tokens"),
        ([{"role": "robot", "content": ""}], {}, "role is 'robot'"),
        ([{"role": "user"}], {}, "content is NoneType"),
        ("hello", {}, "messages are a list"),
        ([], {}, "must end with a user message"),
        ([*QUESTION, {"role": "assistant", "content": "3"}], {}, "must end with a user message"),
    ],
)
def test_what_cannot_be_used_is_said(chat_model, messages, generation, sentence):
    with pytest.raises(UserError, match=sentence):
        chat_model.chat(messages, **generation)


def test_the_configuration_is_not_changed_by_a_call(chat_model):
    before = chat_model.config.generation
    chat_model.chat(QUESTION, max_new_tokens=2)
    assert chat_model.config.generation == before


def test_another_template_than_that_of_training_is_said(trained, tiny_llama):
    keys = {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(trained / "sft")}
    said = []
    ChatModel(keys, notify=said.append)
    assert said == []
    ChatModel({**keys, "default_system": "Be brief."}, notify=said.append)
    assert any("was trained with another chat template" in note and "Be brief." in note for note in said)


def test_variants_are_worn_in_turns(base, adapter):
    keys = {"do_sample": False, "max_new_tokens": 12}
    both = ChatModel(settings(base), variants={"base": (), "sft": (str(adapter),)})
    assert (both.variants, both.variant) == (("base", "sft"), "base")
    alone = {
        "base": ChatModel(settings(base)).chat(QUESTION, **keys),
        "sft": ChatModel(settings(base, adapter_name_or_path=str(adapter))).chat(QUESTION, **keys),
    }
    for name in ("sft", "base", "base", "sft"):
        both.wear(name)
        assert both.chat(QUESTION, **keys) == alone[name]
    assert alone["base"] != alone["sft"]


def test_an_answer_ends_where_learned_positions_do(make_model, base, tmp_path):
    make_model("gpt2").save_pretrained(tmp_path)  # 128 positions, 61 tokens
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = ChatModel({"model_name_or_path": str(tmp_path), "max_new_tokens": 1000, "min_new_tokens": 500})
    asked = [{"role": "user", "content": " " * 9}]
    # tokens that the tiny model does not know are not asked of it
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert max(prompt) >= 61
    model.template.encode_prompt = lambda messages: [3] * len(messages[-1].content)
    (response,) = model.chat([{"role": "user", "content": "x" * 100}])
    assert (response.response_length, response.finish_reason) == (28, "length")
    ends = []

    def streamed():
        ends.append((yield from model.stream_chat([{"role": "user", "content": "x" * 100}])))

    assert list(streamed())
    assert ends == ["length"]
    for length in (128, 200):
        with pytest.raises(UserError, match=f"has {length} tokens, and the model reads 128 in all"):
            list(model.stream_chat([{"role": "user", "content": "x" * length}]))
