"""Modelfiles: what Ollama renders from them is what the chat template renders, or it is said that it cannot be."""

import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from posttrain.config import GenerationConfig
from posttrain.data.chat_formats import shipped_formats
from posttrain.data.formats import Message
from posttrain.data.template import Template
from posttrain.models.ollama import InexpressibleError, checked_seams, modelfile

SYSTEM = ("system", 'Say "{{.Role}}" briefly.')
TURNS = (("user", "你好！"), ("assistant", "好。"), ("user", 'a """ b'), ("assistant", "{{ c }}"), ("user", " Why? "))
CHATS = [(*opening, *TURNS[:length]) for opening in ((), (SYSTEM,)) for length in (1, 3, 5)]


def tokenizer(**special):
    special = {"bos_token": "<s>", "eos_token": "</s>", **special}
    names = [*dict.fromkeys(special.values()), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


class Go:
    """The part of Go's text/template that we write: variables, fields, literals, if, else if, else, range, eq."""

    def __init__(self, text):
        self.parts = re.split(r"\{\{(.*?)\}\}", text, flags=re.DOTALL)

    def rendered(self, messages):
        system = "\n\n".join(content for role, content in messages if role == "system")
        self.at, self.variables, self.out = 0, {}, []
        data = {"System": system, "Messages": [{"Role": role, "Content": content} for role, content in messages]}
        assert self.block(data, live=True) is None
        assert self.at == len(self.parts)
        return "".join(self.out)

    def block(self, dot, *, live):
        """Run up to an action that ends it, and return that; None at the end of the text."""
        while self.at < len(self.parts):
            part, is_action = self.parts[self.at], self.at % 2
            self.at += 1
            if not is_action:
                self.out += [part] if live else []
            elif (action := part.strip()) == "end" or action.split()[0] == "else":
                return action
            elif action.startswith("if "):
                self.choice(action.removeprefix("if "), dot, live=live)
            elif action.startswith("range "):
                start = self.at
                for item in (self.value(action.removeprefix("range "), dot) if live else []) or [None]:
                    self.at = start
                    assert self.block(item, live=live and item is not None) == "end"
            elif assigned := re.fullmatch(r"(\$\w+) (:?=) (.+)", action):
                name, sign, value = assigned.groups()
                assert sign == ":=" or name in self.variables or not live
                if live:
                    self.variables[name] = self.value(value, dot)
            else:
                self.out += [str(self.value(action, dot))] if live else []
        return None

    def choice(self, condition, dot, *, live):
        taken = False
        while True:
            holds = live and not taken and bool(condition is None or self.value(condition, dot))
            taken = taken or holds
            end = self.block(dot, live=holds)
            if end == "end":
                return
            condition = end.removeprefix("else if ") if end != "else" else None

    def value(self, text, dot):
        if text.startswith("eq "):
            one, other = text.removeprefix("eq ").split()
            return self.value(one, dot) == self.value(other, dot)
        if text in ("true", "false"):
            return text == "true"
        if text.startswith('"'):
            return json.loads(text)
        if text.startswith("$"):
            return self.variables[text]
        assert text.startswith("."), text
        return dot[text[1:]]


def parsed(text):
    """A Modelfile as instruction -> values."""
    found = {}
    for name, quoted, plain in re.findall(r'^([A-Z]+) (?:"""(.*?)"""|(.*?))$', text, flags=re.DOTALL | re.MULTILINE):
        found.setdefault(name, []).append(quoted or plain)
    return found


def asked_of_ollama(found, messages):
    """What Ollama renders: its SYSTEM stands in where a chat brings no system message."""
    if "SYSTEM" in found and messages[0][0] != "system":
        messages = (("system", found["SYSTEM"][0]), *messages)
    return Go(found["TEMPLATE"][0]).rendered(messages)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("llama")


def as_messages(chat):
    return [Message(role, content) for role, content in chat]


@pytest.mark.parametrize("name", shipped_formats())
@pytest.mark.parametrize("default_system", [None, "You count.", 'Say "yes"'])
def test_every_named_template_is_rendered_as_by_jinja(model, name, default_system):
    text, notes = modelfile(Template(tokenizer(), name), model, GenerationConfig(), default_system)
    found = parsed(text)
    assert notes == ()
    truth = Template(tokenizer(), name, default_system)
    for chat in CHATS:
        assert asked_of_ollama(found, chat) == truth.prompt_text(as_messages(chat)), (name, chat)


@pytest.mark.parametrize(
    "prompt_template", ["问:{prompt}\n\n答:", '{system}"{prompt}"', "{{{prompt}}}", 'a{{{{b"""c""""{prompt}""']
)
def test_templates_of_ones_own_are_rendered_too(model, prompt_template):
    template = Template(tokenizer(), prompt_template=prompt_template)
    found = parsed(modelfile(template, model, GenerationConfig(), None)[0])
    for chat in CHATS[:3] if "{system}" not in prompt_template else CHATS:
        assert asked_of_ollama(found, chat) == template.prompt_text(as_messages(chat))


def test_an_answer_that_was_begun_is_gone_on_with(model):
    found = parsed(modelfile(Template(tokenizer(), "chatml"), model, GenerationConfig(), None)[0])
    begun = asked_of_ollama(found, (("user", "a"), ("assistant", "b")))
    assert begun == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"


def test_a_start_token_that_the_tokenizer_writes_is_not_written_twice(model):
    own = tokenizer()
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", own.bos_token_id)]
    )
    for name in ("llama3", "llama2", "zephyr"):
        template = Template(own, name)
        found = parsed(modelfile(template, model, GenerationConfig(), None)[0])
        for chat in CHATS:
            assert asked_of_ollama(found, chat) == template.prompt_text(as_messages(chat)).removeprefix("<s>")


def test_the_parameters_are_those_of_the_configuration(model):
    keys = GenerationConfig(temperature=0.6, top_p=0.9, top_k=0, min_p=0.05, repetition_penalty=1.4)
    found = parsed(modelfile(Template(tokenizer(), "chatml"), model, keys, None)[0])
    assert found["FROM"] == ["."]
    assert found["PARAMETER"] == [
        'stop "</s>"',
        "num_ctx 128",
        "temperature 0.6",
        "top_p 0.9",
        "top_k 0",
        "repeat_penalty 1.4",
        "min_p 0.05",
    ]
    greedy = parsed(modelfile(Template(tokenizer(), "chatml"), model, GenerationConfig(do_sample=False), None)[0])
    assert "temperature 0" in greedy["PARAMETER"]


def test_every_token_that_ends_an_answer_is_a_stop(model):
    own = tokenizer(pad_token="<|im_end|>")
    found = parsed(modelfile(Template(own, "chatml"), model, GenerationConfig(), None)[0])
    assert found["PARAMETER"][:2] == ['stop "<|im_end|>"', 'stop "</s>"']


AT_THE_END = (
    "{% for m in messages if m.role != 'system' %}{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content }}{% endif %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        (AT_THE_END, "leaves out, repeats or reorders messages"),
        (NUMBERED, r"with a system message and 2 question\(s\)"),
    ],
)
def test_what_cannot_be_expressed_is_said(model, jinja, reason):
    template = Template(tokenizer(), jinja)
    with pytest.raises(InexpressibleError, match=reason):
        checked_seams(template)
    text, notes = modelfile(template, model, GenerationConfig(), None)
    assert "TEMPLATE" not in parsed(text)
    assert any("cannot be written in Ollama's language" in note for note in notes)


def test_what_differs_a_little_is_said(model, make_model):
    trimming = "{% for m in messages %}{{ m.role }}:{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    dated = "{{ strftime_now('%Y') }}" + trimming.replace(" | trim", "")
    without_system = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    for jinja, sentence in (
        (trimming, "cuts blanks around messages off"),
        (dated, "today's date"),
        (without_system, "no place for a system message"),
    ):
        text, notes = modelfile(Template(tokenizer(), jinja), model, GenerationConfig(), "Be brief.")
        assert [sentence in note for note in notes] == [True]
        assert ("SYSTEM" in parsed(text)) == (jinja is not without_system)
    _, notes = modelfile(Template(tokenizer(), "chatml"), make_model("gpt2"), GenerationConfig(), None)
    assert ["GGUF" in note for note in notes] == [True]


def test_an_exported_folder_holds_one(tmp_path, trained, tiny_llama):
    from posttrain.config import load_config
    from posttrain.models.export import export_model

    keys = {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(trained / "sft")}
    values = {**keys, "export_dir": str(tmp_path / "merged"), "default_system": "Be brief.", "temperature": 0.5}
    folder = export_model(load_config(values, command="export"))
    found = parsed((folder / "Modelfile").read_text(encoding="utf-8"))
    template = Template(AutoTokenizer.from_pretrained(folder), default_system="Be brief.")
    for chat in CHATS:
        assert asked_of_ollama(found, chat) == template.prompt_text(as_messages(chat))
    assert {'stop "<|im_end|>"', "temperature 0.5", "num_ctx 256"} <= set(found["PARAMETER"])
    reward = export_model(
        load_config(
            {**keys, "adapter_name_or_path": str(trained / "rm"), "export_dir": str(tmp_path / "rm")}, command="export"
        )
    )
    assert not (reward / "Modelfile").exists()
