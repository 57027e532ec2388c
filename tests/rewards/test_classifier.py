"""Sequence classifiers as rewards: their own tokenizers, templates and labels."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from posttrain.config import load_config
from posttrain.errors import RewardError, UserError
from posttrain.models.classifier import load_classifier
from posttrain.rewards.classifier import ClassifierReward

FILM = ["good", "bad", "the", "film", "was", "not", "at", "all", "user", "assistant", "yes", "no", ",", ":"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<e>", *FILM]
CHAT = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' <e> ' }}{% endfor %}"


def make_tokenizer(*, pads="[PAD]", template=None, around=True):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        pairs = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    tokenizer.add_special_tokens(["<e>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pads, unk_token="[UNK]", eos_token="<e>")
    fast.chat_template = template
    return fast


def make_encoder(folder, kind="distilbert", *, labels=("NEGATIVE", "POSITIVE"), **settings):
    torch.manual_seed(5)
    shared = {
        "vocab_size": len(WORDS),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "max_position_embeddings": 16,
        "initializer_range": 0.5,
        **settings,
    }
    if kind == "bert":
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        model = BertForSequenceClassification(BertConfig(**size, **shared))
    else:
        size = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
        model = DistilBertForSequenceClassification(DistilBertConfig(**size, **shared))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_decoder(folder, *, pad=None, template=CHAT, labels=1):
    torch.manual_seed(6)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = LlamaConfig(vocab_size=len(WORDS), **size, num_labels=labels, initializer_range=0.5, bos_token_id=None)
    config.pad_token_id, config.eos_token_id = pad, WORDS.index("<e>")
    LlamaForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer(pads="<e>", template=template, around=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return make_decoder(tmp_path_factory.mktemp("decoder"))


def alone(folder, text, kind=DistilBertForSequenceClassification, **options):
    """[labels] by transformers' own code, the text by itself."""
    model = kind.from_pretrained(folder).eval()
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(text, return_tensors="pt", **options)["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


TEXTS = ["good", "the film was not at all bad", "bad , bad", "not good at all , the film was bad , bad"]


@pytest.mark.parametrize("value", ["logit", "log_probability", "probability"])
def test_each_text_gets_what_the_model_says_of_it_alone(rollouts, encoder, value):
    reward = ClassifierReward(
        load_classifier(str(encoder), label="POSITIVE", value=value), template="{completion}", batch_size=3
    )
    logits = torch.stack([alone(encoder, text) for text in TEXTS])
    of = {"logit": logits, "log_probability": logits.log_softmax(1), "probability": logits.softmax(1)}[value]
    assert reward(rollouts(TEXTS)).tolist() == pytest.approx(of[:, 1].tolist(), abs=1e-5)


@pytest.mark.parametrize("label", ["NEGATIVE", "negative", "0"])
def test_a_label_is_named_or_numbered(rollouts, encoder, label):
    reward = ClassifierReward(load_classifier(str(encoder), label=label), template="{completion}")
    assert reward(rollouts(["good"])).tolist() == pytest.approx([float(alone(encoder, "good")[0])], abs=1e-5)


def test_labels_that_exclude_nothing_have_probabilities_of_their_own(rollouts, tmp_path):
    folder = make_encoder(tmp_path, "bert", problem_type="multi_label_classification")
    reward = ClassifierReward(load_classifier(str(folder), label="1", value="probability"), template="{completion}")
    expected = alone(folder, "good", BertForSequenceClassification).sigmoid()[1]
    assert reward(rollouts(["good"])).tolist() == pytest.approx([float(expected)], abs=1e-6)


def test_a_single_output_is_taken_as_it_is(rollouts, tmp_path):
    folder = make_encoder(tmp_path, labels=("reward",))
    reward = ClassifierReward(load_classifier(str(folder), value="probability"), template="{completion}")
    assert reward(rollouts(["bad"])).tolist() == pytest.approx([float(alone(folder, "bad")[0])], abs=1e-5)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (None, r"reward_label is missing: .* has 2 labels \(0: NEGATIVE, 1: POSITIVE\)"),
        ("happy", "has no label 'happy'; its labels are 0: NEGATIVE, 1: POSITIVE"),
        ("2", "has no label '2'"),
    ],
)
def test_a_label_that_is_not_there_lists_those_that_are(encoder, label, words):
    with pytest.raises(UserError, match=words):
        load_classifier(str(encoder), label=label)


def test_the_template_is_filled_from_prompt_question_and_columns(rollouts, encoder):
    classifier = load_classifier(str(encoder), label="1")
    chats = [({"role": "system", "content": "s"}, {"role": "user", "content": "was it good"})]
    batch = rollouts(["yes"], ["user : was it good"], chats, film=["the film"])
    texts = {
        "{prompt} {completion}": "user : was it good yes",
        None: "was it good\nyes",
        "{film} , {question} {{}} {completion}": "the film , was it good {} yes",
    }
    for template, text in texts.items():
        reward = ClassifierReward(classifier, template=template)
        assert reward.texts(batch) == [text]
        assert reward(batch).tolist() == pytest.approx([float(alone(encoder, text)[1])], abs=1e-5)


def test_a_completion_with_braces_stays_as_it_is(rollouts, encoder):
    reward = ClassifierReward(load_classifier(str(encoder), label="1"), template="{completion}")
    assert reward.texts(rollouts(["{prompt} {0} {{"])) == ["{prompt} {0} {{"]


def test_the_chat_is_rendered_by_the_classifiers_own_template(rollouts, decoder):
    classifier = load_classifier(str(decoder))
    chat = ({"role": "user", "content": "was the film good"},)
    batch = rollouts(["not at all"], ["<|im_start|>user whatever"], [chat])
    text = "user : was the film good <e> assistant : not at all <e> "
    expected = alone(decoder, text, LlamaForSequenceClassification, add_special_tokens=False)
    for template in (None, "chat"):
        assert ClassifierReward(classifier, template=template)(batch).tolist() == pytest.approx(
            [float(expected[0])], abs=1e-5
        )


@pytest.mark.parametrize("pad", [None, WORDS.index("[PAD]")])
def test_a_decoder_reads_the_last_token_even_where_texts_end_with_its_padding(rollouts, tmp_path, pad):
    # its tokenizer pads with the token that ends its texts; where its configuration names no padding token, the
    # score is that of the last token, and of a text by itself it is so too
    folder = make_decoder(tmp_path, pad=pad, template=None)
    reward = ClassifierReward(load_classifier(str(folder)), template="{completion}", batch_size=4)
    texts = ["good <e>", "the film was bad <e>", "no", "not at all good , no <e>"]
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = model.model(input_ids=ids).last_hidden_state
            expected.append(float(model.score(hidden)[0, -1, 0]))
    assert reward(rollouts(texts)).tolist() == pytest.approx(expected, abs=1e-5)


def test_an_empty_text_can_be_scored(rollouts, tmp_path):
    reward = ClassifierReward(load_classifier(str(make_decoder(tmp_path, template=None))), template="{completion}")
    assert reward(rollouts(["", "good"])).isfinite().all()


def test_of_a_text_that_is_too_long_the_end_is_read(rollouts, encoder):
    text = "good " * 30 + "the film was bad"
    reward = ClassifierReward(load_classifier(str(encoder), label="1"), template="{completion}")
    # 16 positions: [CLS], the last 14 words, [SEP]
    expected = alone(encoder, "good " * 10 + "the film was bad")[1]
    assert reward(rollouts([text])).tolist() == pytest.approx([float(expected)], abs=1e-5)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{prompt}", "has no {completion}"),
        ("{completion} {", "a brace that is meant is written twice"),
        ("{completion} {a.b}", "no name of a column"),
        ("{} {completion}", "no name of a column"),
        ("chat", "has a chat template, and this one has none"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(encoder, template, words):
    with pytest.raises(UserError, match=f"^reward_template: .*{words}"):
        ClassifierReward(load_classifier(str(encoder), label="1"), template=template)


def test_rows_that_lack_a_column_of_the_template_are_named(encoder):
    reward = ClassifierReward(load_classifier(str(encoder), label="1"), template="{film} {completion}")
    with pytest.raises(UserError, match=r"reward_template: row 2 of the data has no column `film` \(columns: none\)"):
        reward.check([{"film": "x"}, {}])


def test_a_language_model_is_no_classifier(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **size)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 1 of the weights of a sequence classifier, among them score\.weight"):
        load_classifier(str(tmp_path), label="1")


def test_weights_that_are_no_numbers_stop_the_run(rollouts, tmp_path):
    folder = make_encoder(tmp_path)
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data[1, 0] = float("nan")
    model.save_pretrained(folder)
    reward = ClassifierReward(load_classifier(str(folder), label="1"), template="{completion}")
    with pytest.raises(RewardError, match=r"the classifier gave nan for completion 1 of 1 \('good'\)"):
        reward(rollouts(["good"]))


def test_the_keys_of_a_configuration(rollouts, encoder):
    keys = {
        **{"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "stage": "ppo"},
        **{"reward_classifier": str(encoder), "reward_label": "POSITIVE", "reward_label_value": "log_probability"},
        **{"reward_template": "{prompt} {completion}", "reward_device": "cpu", "reward_batch_size": 2},
    }
    reward = ClassifierReward.configured(load_config(keys))
    expected = alone(encoder, "the film was good").log_softmax(0)[1]
    assert reward(rollouts(["good"], ["the film was"])).tolist() == pytest.approx([float(expected)], abs=1e-5)
    with pytest.raises(UserError, match="reward_device: cuda:9 cannot be used"):
        ClassifierReward.configured(load_config({**keys, "reward_device": "cuda:9"}))
