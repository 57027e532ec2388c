"""Finished folders go to a hub: a small server that speaks enough of its protocol, asked by the real client."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from posttrain.config import load_config
from posttrain.errors import RunError, UserError
from posttrain.models.export import export_model
from posttrain.models.hub import model_card
from posttrain.train.run import train


class Hub(ThreadingHTTPServer):
    """Keeps what is uploaded. files: path -> bytes. asked: (path, request). refuse: status that every upload gets."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.refuse, self.tokens = {}, [], None, set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        hub = self.server
        hub.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            asked = json.loads(text)
            hub.asked.append((self.path, asked))
            if hub.refuse:
                return self.answer(hub.refuse, {"error": "You are not allowed to write here."})
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            return self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": "1"})
        if self.path == "/api/validate-yaml":
            assert json.loads(text)["content"].startswith("---")
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(text)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.answer(200, {"files": modes})
        assert "/commit/" in self.path
        hub.asked.append((self.path, None))
        for line in map(json.loads, text.splitlines()):
            if line["key"] == "file":
                hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(200, {"commitUrl": f"{hub.url}/me/x/commit/1", "commitOid": "1", "success": True})

    def do_GET(self):
        self.answer(404, {"error": "nothing here"})


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


def test_a_finished_run_is_uploaded_with_a_card_and_without_its_checkpoints(hub, tiny_config, tmp_path):
    said = []
    (tmp_path / "fruit-sft" / "inputs").mkdir(parents=True)
    (tmp_path / "fruit-sft" / "inputs" / "train.jsonl").write_text('{"secret": 1}')
    (tmp_path / "fruit-sft" / "reference_logps.safetensors").write_bytes(b"1")
    config = tiny_config(
        "sft", tmp_path / "fruit-sft", push_to_hub=True, hub_private_repo=True, val_size=2, report_to="tensorboard"
    )
    train(config, notify=said.append)
    place, asked = hub.asked[0]
    assert place == "/api/repos/create"
    assert asked["name"] == "fruit-sft"
    assert asked.get("private") is True or asked.get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    folder = tmp_path / "fruit-sft"
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "config.yaml", "lineage.json"):
        assert hub.files[name] == (folder / name).read_bytes()
    assert (folder / "checkpoint-3").is_dir()
    assert (folder / "runs").is_dir()
    assert not [name for name in hub.files if name.startswith(("checkpoint", "runs", "inputs", "reference"))]
    card = hub.files["README.md"].decode()
    assert "library_name: peft" in card
    assert "| eval_loss |" in card
    assert "base_model" not in card  # a folder here means nothing there
    assert said[-1] == f"uploaded to {hub.url}/me/fruit-sft"
    assert "hf_secret" not in "".join(path.read_text("utf-8", "replace") for path in folder.glob("*.y*ml"))


def test_an_export_is_uploaded_to_the_repository_that_is_named(hub, trained, tiny_llama, tmp_path):
    keys = {
        "model_name_or_path": str(tiny_llama),
        "adapter_name_or_path": str(trained / "sft"),
        "export_dir": str(tmp_path / "merged"),
        "export_hub_model_id": "fruits/merged",
    }
    export_model(load_config(keys, command="export"))
    assert hub.asked[0][1]["organization"] == "fruits"
    assert hub.files["model.safetensors"] == (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert b"library_name: transformers" in hub.files["README.md"]


@pytest.mark.parametrize("why", ["refused", "gone"])
def test_an_upload_that_fails_leaves_the_run_complete_and_says_how_to_do_it_later(hub, tiny_config, tmp_path, why):
    if why == "refused":
        hub.refuse = 403
    else:
        hub.shutdown()
        hub.server_close()
    config = tiny_config("sft", tmp_path / "out", push_to_hub=True, hub_model_id="me/fruit", save_strategy="no")
    with pytest.raises(RunError, match=r"hub_model_id: .*out is complete, but .*`hf upload me/fruit .*out`"):
        train(config)
    assert json.loads((tmp_path / "out" / "all_results.json").read_text("utf-8"))["total_steps"] == 3


def test_what_cannot_be_uploaded_is_refused_before_anything_is_trained(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"push_to_hub needs a token .*HF_TOKEN"):
        train(tiny_config("sft", tmp_path / "out", push_to_hub=True))
    with pytest.raises(UserError, match="hub_model_id: 'a/b/c' cannot be the name of a repository"):
        train(tiny_config("sft", tmp_path / "out", push_to_hub=True, hub_model_id="a/b/c"))
    assert not (tmp_path / "out").exists()


def test_a_card_names_a_base_that_the_hub_knows_and_keeps_a_readme_of_yours(tiny_config, tmp_path):
    config = tiny_config("dpo", tmp_path / "out", model_name_or_path="Qwen/Qwen2-0.5B")
    card = model_card(config, tmp_path, {"eval_accuracy": 0.75, "train_loss": float(2), "alarms": {}})
    assert "base_model: Qwen/Qwen2-0.5B" in card
    assert "on `Qwen/Qwen2-0.5B`" in card
    assert "| eval_accuracy | 0.75 |" in card
    assert "pairs.json" in card
