"""Exported folders: plain transformers says of them what base and adapters said, and nothing half-made stays."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from posttrain.config import load_config
from posttrain.errors import RunError, UserError
from posttrain.models import export, merging
from posttrain.models.adapter_files import write_adapter
from posttrain.models.adapters import adapter_parameters, adapter_state, add_adapter, lora_config
from posttrain.models.chains import chain
from posttrain.models.export import export_model
from posttrain.models.heads import ScalarHead
from posttrain.models.lineage import Backbone, Lineage, fingerprint, read_lineage, write_lineage
from posttrain.models.load import load_causal_lm
from posttrain.models.probe import largest_gap, own_scores, probe_batch
from posttrain.types import Batch

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH = 16
SEQUENCES = torch.tensor([[5, 9, 44, 100, 7, 3], [61, 12, 8, 200, 31, 2]])


def tiny_tokenizer(**special):
    names = ["<|end|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|end|>"],
        **special,
    )
    fast.chat_template = CHATML
    return fast


def save_base(folder, *, tied=False, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder, base, *, stage="sft", parents=(), seed=1, head=None, targets=("all",), recorded=True):
    model = load_causal_lm(base)
    mark = fingerprint(model)
    config = lora_config(model, rank=4, alpha=8, dropout=0.0, targets=[t for t in targets if t != "lm_head"])
    if "lm_head" in targets:
        config.target_modules = {*config.target_modules, "lm_head"}
    add_adapter(model, "own", config, seed=seed, on_head=True)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model, "own").values():
        parameter.data.normal_(std=0.1, generator=generator)
    write_adapter(folder, config, adapter_state(model, "own"), base_model_name_or_path=str(base))
    if recorded:
        stood_on = tuple(link.parent for link in chain(parents))
        backbone = Backbone(name_or_path=str(base), fingerprint=mark)
        write_lineage(folder, Lineage(stage=stage, base=backbone, parents=stood_on, template="abc"))
    if head is not None:
        head.save(folder)
    return folder


def score_head(bias=0.0, seed=3):
    head = ScalarHead(WIDTH, "score", generator=torch.Generator().manual_seed(seed))
    head.bias.fill_(bias)
    return head


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def sft(tmp_path, base):
    return save_adapter(tmp_path / "sft", base)


def exported(model, target, adapter=None, said=None, **keys):
    values = {"model_name_or_path": str(model), "export_dir": str(target), **keys}
    if adapter is not None:
        values["adapter_name_or_path"] = str(adapter)
    return export_model(load_config(values, command="export"), (said if said is not None else []).append)


def logits(model):
    with torch.no_grad():
        return model(SEQUENCES).logits.float()


def with_adapters(base, *adapters):
    """Base and adapters by peft alone."""
    model = AutoModelForCausalLM.from_pretrained(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def test_transformers_alone_says_what_base_and_adapter_say(tmp_path, base, sft):
    said = []
    folder = exported(base, tmp_path / "merged", sft, said)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(with_adapters(base, sft))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert (logits(AutoModelForCausalLM.from_pretrained(base)) - expected).abs().max() > 0.1
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(folder).chat_template == CHATML
    assert not [key for key in model.state_dict() if "base_layer" in key or "lora" in key]
    assert any("loaded again with transformers" in sentence for sentence in said)
    assert "float32" in said[0]
    assert "adapters/0" in (folder / "README.md").read_text(encoding="utf-8")


def test_lineage_lets_the_folder_be_moved(tmp_path, base, sft):
    folder = exported(base, tmp_path / "merged", sft)
    shutil.rmtree(sft)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    lineage = read_lineage(moved)
    assert lineage.merged
    assert lineage.stage == "export"
    assert lineage.base == Backbone(name_or_path=str(base.resolve()), fingerprint=fingerprint(load_causal_lm(base)))
    assert lineage.weights == fingerprint(load_causal_lm(moved)) != lineage.base.fingerprint
    links = chain(moved / parent.path for parent in lineage.parents)
    assert [link.fingerprint for link in links] == [parent.fingerprint for parent in lineage.parents]
    torch.testing.assert_close(
        logits(with_adapters(base, links[0].folder)), logits(load_causal_lm(moved)), atol=1e-5, rtol=0
    )


def test_recorded_parents_are_merged_too_each_once(tmp_path, base, sft):
    top = save_adapter(tmp_path / "top", base, parents=[sft], seed=5)
    expected = logits(with_adapters(base, sft, top))
    alone = exported(base, tmp_path / "a", top)
    both = exported(base, tmp_path / "b", f"{sft}, {top}")
    for folder in (alone, both):
        torch.testing.assert_close(logits(load_causal_lm(folder)), expected, atol=1e-5, rtol=0)
        assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["0", "1"]
    shutil.rmtree(sft)
    assert len(chain([alone / "adapters" / "1"])) == 2  # the copy finds its parent beside itself


def test_an_adapter_on_a_merged_folder_stands_on_the_first_base(tmp_path, base, sft):
    merged = exported(base, tmp_path / "merged", sft)
    ppo = save_adapter(tmp_path / "ppo", merged, stage="ppo", seed=7)
    twice = exported(merged, tmp_path / "twice", ppo)
    torch.testing.assert_close(logits(load_causal_lm(twice)), logits(with_adapters(base, sft, ppo)), atol=1e-5, rtol=0)
    lineage = read_lineage(twice)
    assert lineage.base.name_or_path == str(base.resolve())
    assert [parent.path for parent in lineage.parents] == ["adapters/0", "adapters/1"]


def test_an_adapter_on_a_tied_output_head_leaves_the_embedding_alone(tmp_path):
    tied = save_base(tmp_path / "tied", tied=True)
    adapter = save_adapter(tmp_path / "adapter", tied, targets=("q_proj", "lm_head"))
    folder = exported(tied, tmp_path / "merged", adapter)
    model, source = load_causal_lm(folder), load_causal_lm(tied)
    assert torch.equal(model.get_input_embeddings().weight, source.get_input_embeddings().weight)
    assert not torch.equal(model.get_output_embeddings().weight, source.get_output_embeddings().weight)


def test_a_reward_model_becomes_a_sequence_classifier_with_the_same_scores(tmp_path, base):
    head = score_head()
    rm = save_adapter(tmp_path / "rm", base, stage="rm", head=head)
    said = []
    folder = exported(base, tmp_path / "merged", rm, said)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, None)
    assert any("padding token" in sentence for sentence in said)
    # every text ends with the end of turn, which the base tokenizer also pads with
    texts = ["<|im_start|>user\nhi<|im_end|>", "<|im_start|>user\nlonger text here<|im_end|>", "a<|im_end|>"]
    encoded = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    mask = encoded.attention_mask.bool()
    with torch.no_grad():
        found = model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits[:, 0]
    batch = Batch(input_ids=encoded.input_ids, attention_mask=mask, loss_mask=mask)
    torch.testing.assert_close(found, own_scores(with_adapters(base, rm), head, batch), atol=1e-5, rtol=0)
    assert found.std() > 0.01


def test_the_constant_of_a_score_head_is_left_out_and_said(tmp_path, base):
    rm = save_adapter(tmp_path / "rm", base, stage="rm", head=score_head(bias=2.5))
    said = []
    folder = exported(base, tmp_path / "merged", rm, said)
    batch = probe_batch(259, pad_id=258)
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        found = torch.stack(
            [model(input_ids=ids[:n][None]).logits[0, 0] for ids, n in zip(batch.input_ids, batch.lengths, strict=True)]
        )
    expected = own_scores(with_adapters(base, rm), score_head(bias=2.5), batch)
    torch.testing.assert_close(found + 2.5, expected, atol=1e-5, rtol=0)
    assert any("2.5" in sentence and "no comparison" in sentence for sentence in said)


def test_stage_rm_asks_for_a_head_that_another_program_wrote(tmp_path, base):
    foreign = save_adapter(tmp_path / "foreign", base, head=score_head(), recorded=False)
    assert (exported(base, tmp_path / "lm", foreign) / "generation_config.json").is_file()
    folder = exported(base, tmp_path / "rm", foreign, stage="rm")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    assert kind == ["LlamaForSequenceClassification"]
    without = save_adapter(tmp_path / "without", base, stage="rm")
    with pytest.raises(UserError, match="no score head"):
        exported(base, tmp_path / "no", without)
    assert not (tmp_path / "no").exists()


def test_a_fully_trained_model_is_copied_in_the_dtype_it_is_stored_in(tmp_path):
    full = save_base(tmp_path / "full", dtype=torch.bfloat16)
    write_lineage(full, Lineage(stage="sft", base=Backbone(name_or_path="somewhere", fingerprint="0" * 64)))
    folder = exported(full, tmp_path / "copy")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_bf16(full).parameters(), strict=True))
    lineage = read_lineage(folder)
    assert (lineage.base.name_or_path, lineage.merged, lineage.parents) == ("somewhere", False, ())
    assert not (folder / "adapters").exists()


def load_bf16(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def test_less_precision_has_to_be_asked_for_and_is_measured(tmp_path, base, sft):
    said = []
    folder = exported(base, tmp_path / "half", sft, said, dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    assert any("rounding the weights to bfloat16" in sentence for sentence in said)
    gap = largest_gap(logits(load_causal_lm(folder)), logits(with_adapters(base, sft)))
    assert 1e-4 < gap < 0.2


def test_a_merge_that_went_wrong_is_not_kept(tmp_path, base, sft, monkeypatch):
    def forgetful(model, names):
        merging.wear(model, ())

    monkeypatch.setattr(merging, "fold", forgetful)
    with pytest.raises(RunError, match="writing changed the model"):
        exported(base, tmp_path / "out" / "merged", sft)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, base, sft, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "describe", full)
    with pytest.raises(RunError, match="No space left"):
        exported(base, tmp_path / "out" / "merged", sft)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path, base, sft):
    target = tmp_path / "merged"
    target.mkdir()  # an empty folder is no obstacle
    exported(base, target, sft)
    before = read_lineage(target).weights
    other = save_adapter(tmp_path / "other", base, seed=9)
    with pytest.raises(UserError, match="overwrite_output_dir"):
        exported(base, target, other)
    assert read_lineage(target).weights == before
    exported(base, target, other, overwrite_output_dir=True)
    assert read_lineage(target).weights != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "other", "sft"]


def test_bad_places_and_bad_sources_are_refused(tmp_path, base, sft):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("", encoding="utf-8")
    cases = [
        ("nothing to export", base, tmp_path / "x", None),
        ("which is read", base, base, sft),
        ("which is read", base, base.parent, sft),
        ("which is read", base, tmp_path, sft),
        ("no export wrote", base, tmp_path / "mine", sft),
        ("is a file", base, tmp_path / "mine" / "thesis.txt", sft),
        ("does not exist", base, tmp_path / "x", tmp_path / "gone"),
    ]
    for message, model, target, adapter in cases:
        with pytest.raises(UserError, match=message):
            exported(model, target, adapter, overwrite_output_dir=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert not (tmp_path / "x").exists()


def test_an_adapter_of_another_backbone_is_refused_unless_allowed(tmp_path, sft):
    other = save_base(tmp_path / "other", seed=8)
    with pytest.raises(UserError, match="allow_mismatch"):
        exported(other, tmp_path / "x", sft)
    assert not (tmp_path / "x").exists()
    said = []
    exported(other, tmp_path / "x", sft, said, allow_mismatch=True)
    assert any("allow_mismatch" in sentence for sentence in said)


def test_a_base_that_sets_a_temperature_without_sampling_can_be_exported(tmp_path, base, sft):
    odd = shutil.copytree(base, tmp_path / "odd")
    path = odd / "generation_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"temperature": 0.6, "top_p": 0.9}
    path.write_text(json.dumps(content), encoding="utf-8")
    folder = exported(odd, tmp_path / "merged", sft)
    written = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert (written["do_sample"], written["temperature"]) == (True, 0.6)


def test_an_earlier_export_keeps_its_name_where_the_new_one_cannot_take_it(tmp_path, base, sft, monkeypatch):
    target = exported(base, tmp_path / "out" / "merged", sft)
    before = read_lineage(target)
    real = Path.rename

    def refused(self, to):
        if self.name.endswith(".partial"):
            raise OSError(13, "Permission denied")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(RunError, match="Permission denied"):
        exported(base, target, save_adapter(tmp_path / "other", base, seed=9), overwrite_output_dir=True)
    assert read_lineage(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["merged"]


def test_what_killed_exports_left_is_removed(tmp_path, base, sft):
    out = tmp_path / "out"
    for name in (".merged-abc_12de.partial", ".merged-replaced-77", ".merged-v2-abc_12de.partial", ".merged-notes"):
        (out / name).mkdir(parents=True)
        (out / name / "model.safetensors").touch()
    (out / ".merged-replaced-77" / "old").touch()
    (out / "merged").mkdir()
    exported(base, out / "merged", sft)
    assert sorted(path.name for path in out.iterdir()) == [".merged-notes", ".merged-v2-abc_12de.partial", "merged"]


def test_an_export_that_was_killed_between_two_names_is_put_back(tmp_path, base, sft, monkeypatch):
    target = exported(base, tmp_path / "out" / "merged", sft)
    before = read_lineage(target)
    target.rename(target.with_name(".merged-replaced-77"))
    monkeypatch.setattr(export, "merge", lambda *_: (_ for _ in ()).throw(RunError("stopped")))
    with pytest.raises(RunError, match="stopped"):
        exported(base, target, sft)
    assert read_lineage(target) == before


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_the_folder_and_its_files_have_the_modes_of_others(tmp_path, base, sft):
    before = os.umask(0o027)
    try:
        folder = exported(base, tmp_path / "merged", sft)
    finally:
        os.umask(before)
    places = [folder, *folder.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in places if path.is_dir()} == {0o750}
    assert {path.stat().st_mode & 0o777 for path in places if path.is_file()} == {0o640}
    assert (folder / "adapters" / "0" / "adapter_model.safetensors") in places


def test_an_adapter_without_lineage_that_names_another_model_is_refused(tmp_path, base):
    elsewhere = save_base(tmp_path / "elsewhere", seed=8)
    foreign = save_adapter(tmp_path / "foreign", elsewhere, recorded=False)
    with pytest.raises(UserError, match=r"foreign names .*elsewhere as the model it was trained on, but .*allow_mism"):
        exported(base, tmp_path / "x", foreign)
    said = []
    exported(elsewhere, tmp_path / "x", foreign, said)
    assert any("does not record" in sentence for sentence in said)
