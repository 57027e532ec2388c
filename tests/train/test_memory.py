"""Planned memory against what really is there: parameters, what autograd keeps, the cache, files of a checkpoint."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import UserError
from posttrain.models import attention
from posttrain.models.activations import fuse_activations
from posttrain.models.adapters import add_adapter, lora_config
from posttrain.models.assemble import offline_assembly, online_assembly
from posttrain.models.forward import trunk
from posttrain.models.skeleton import saved_bytes, skeleton, stored_elements
from posttrain.rollout import Prompt, SamplingParams, SlotSampler
from posttrain.rollout.kv_cache import KVCache
from posttrain.train.memory import kv_bytes_per_token, memory_plan
from posttrain.train.run import train

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "mistral"]


def trainable(model, kind):
    model.requires_grad_(kind == "full")
    if kind == "lora":
        with torch.device(model.device):
            add_adapter(model, "own", lora_config(model, rank=4, alpha=8, dropout=0.0, targets=("all",)))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".own." in name)
    return model


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_keeps_what_the_model_keeps(make_model, make_batch, tmp_path, family, kind):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    planned = saved_bytes(trainable(skeleton(tmp_path, dtype=torch.float32), kind), 96)
    attention.register()
    fuse_activations(model).set_attn_implementation(attention.NAME)
    own = {p.untyped_storage().data_ptr() for p in trainable(model, kind).parameters()}
    held = {}

    def hold(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    batch = make_batch([[index % 50 + 8 for index in range(96)]])
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        hidden, _ = trunk(model.train(), batch)
    kept = sum(storage.nbytes() for storage in held.values())
    assert hidden.requires_grad
    assert planned == pytest.approx(kept, rel=0.02)


def test_what_is_kept_grows_with_tokens_and_layers(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    short, long = (saved_bytes(trainable(skeleton(tmp_path, dtype=torch.float32), "full"), n) for n in (64, 128))
    assert long == pytest.approx(2 * short, rel=0.01)
    half = saved_bytes(trainable(skeleton(tmp_path, dtype=torch.bfloat16), "full"), 128)
    assert half < 0.8 * long


def held(roles):
    """(bytes of all parameters, how many of their numbers train)."""
    parameters = {id(p): p for p in roles.parameters()}.values()
    return sum(p.numel() * p.element_size() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def trained_in(roles, *names):
    return sum(p.numel() for role in names for p in {id(p): p for p in roles.parameters_of(role).values()}.values())


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("sft", {}),
        ("sft", {"finetuning_type": "full"}),
        ("sft", {"finetuning_type": "freeze", "freeze_trainable_layers": 1}),
        ("rm", {"lora_target": "q_proj,v_proj", "lora_rank": 2}),
        ("dpo", {}),
    ],
)
def test_the_state_of_an_offline_run(tiny_config, tmp_path, stage, keys):
    config = tiny_config(stage, tmp_path / "out", **keys)
    roles = offline_assembly(config).roles
    (model,) = memory_plan(config).models
    count = trained_in(roles, "reward" if stage == "rm" else "actor")
    size, _ = held(roles)
    assert model.num_trained == count
    assert (model.gradients, model.optimizer) == (4 * count, 8 * count)
    assert model.weights + model.adapters == pytest.approx(size, abs=8 * 33)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_smaller(tiny_config, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    config = tiny_config("sft", tmp_path / "out", quantization_bit=bits)
    (model,) = memory_plan(config).models
    roles = offline_assembly(config).roles
    held_bytes = sum(t.numel() * t.element_size() for t in {id(t): t for t in roles.state_dict().values()}.values())
    assert model.weights + model.adapters == pytest.approx(held_bytes, rel=0.2)  # with code books of 1 kB
    assert model.weights < memory_plan(tiny_config("sft", tmp_path / "out")).models[0].weights


def test_an_adapter_that_is_continued_has_its_own_rank(tiny_config, trained, tmp_path):
    config = tiny_config("sft", tmp_path / "out", adapter_name_or_path=str(trained / "sft"), lora_rank=16)
    assert memory_plan(config).models[0].num_trained == trained_in(offline_assembly(config).roles, "actor")


ONLINE = [
    ("ppo", "rm", {}),
    ("ppo", "rm", {"critic": "adapter"}),
    ("ppo", "rm", {"finetuning_type": "full"}),
    ("ppo", "rm", {"finetuning_type": "full", "critic": "model"}),
    ("ppo", "rm", {"model_name_or_path": "merged"}),
    ("grpo", "rm", {"num_return_sequences": 2}),
    ("ppo", "elsewhere", {}),
    ("ppo", "elsewhere", {"critic": "adapter"}),
]


@pytest.mark.parametrize(("stage", "reward", "keys"), ONLINE)
def test_the_state_of_an_online_run(tiny_config, trained, elsewhere, tmp_path, stage, reward, keys):
    folder = elsewhere if reward == "elsewhere" else trained / reward
    named = {k: str(trained / v) if k == "model_name_or_path" else v for k, v in keys.items()}
    config = tiny_config(stage, tmp_path / "out", **{"reward_model": str(folder), **named})
    roles = online_assembly(config).roles
    plan = memory_plan(config)
    size, _ = held(roles)
    owned = {id(p): p for role in ("actor", "critic") if role in roles for p in roles.parameters_of(role).values()}
    count = sum(p.numel() for p in owned.values())
    assert sum(model.num_trained for model in plan.models) == count
    assert sum(model.weights + model.adapters for model in plan.models) == pytest.approx(size, rel=0.02)
    assert len(plan.models) == len(
        {id(roles.backbone_of(r)) for r in ("actor", "reference", "reward", "critic") if r in roles}
    )
    assert sorted(role for model in plan.models for role in model.roles) == sorted(
        role for role in ("actor", "reference", "reward", "critic") if role in roles
    )


@pytest.fixture
def elsewhere(tiny_llama, tiny_config, tmp_path):
    """A reward adapter on another model than the policy's."""
    config = AutoConfig.from_pretrained(tiny_llama)
    config.num_hidden_layers = 3
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    for file in [*tiny_llama.glob("token*"), *tiny_llama.glob("*.jinja")]:
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    keys = {"model_name_or_path": str(tmp_path / "other"), "max_steps": 1, "save_strategy": "no"}
    train(tiny_config("rm", tmp_path / "elsewhere", **keys))
    return tmp_path / "elsewhere"


def test_keys_and_values_of_a_cache_that_is_full(tiny_config, tiny_llama, trained, tmp_path):
    config = tiny_config("ppo", tmp_path / "out", reward_model=str(trained / "rm"), num_rollout_slots=3)
    plan = memory_plan(config, longest_prompt=20)
    model = online_assembly(config).roles.backbone_of("actor")
    caches = []

    class Kept(KVCache):
        def __init__(self, *args, **keys):
            super().__init__(*args, **keys)
            caches.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.rollout.slots.KVCache", Kept)
        prompts = [Prompt(input_ids=tuple(range(3, 23)), index=i, samples=1) for i in range(3)]
        SlotSampler(model, num_slots=3).generate(prompts, SamplingParams(max_new_tokens=8, stop_token_ids=(), seed=1))
    assert plan.kv_cache == caches[0].num_bytes == 3 * 28 * kv_bytes_per_token(model, 4)


@pytest.mark.parametrize("keys", [{}, {"finetuning_type": "full"}, {"save_only_model": True}])
def test_a_checkpoint_takes_the_planned_room(tiny_config, tmp_path, keys):
    config = tiny_config("sft", tmp_path / "out", save_steps=1, max_steps=1, lora_rank=32, **keys)
    plan = memory_plan(config)
    train(config)
    files = (tmp_path / "out" / "checkpoint-1").rglob("*.safetensors")
    assert plan.checkpoint == pytest.approx(sum(file.stat().st_size for file in files), rel=0.15)


def test_what_the_largest_micro_batch_holds(tiny_config, tmp_path):
    small = memory_plan(tiny_config("sft", tmp_path / "out", max_tokens_per_microbatch=32), longest=40)
    assert small.num_tokens == 40  # a row is never cut
    assert memory_plan(tiny_config("sft", tmp_path / "out"), longest=40).num_tokens == 160  # there is no more
    large = memory_plan(tiny_config("sft", tmp_path / "out", max_tokens_per_microbatch=100), longest=40)
    assert large.num_tokens == 100
    assert large.activations > 2 * small.activations
    assert memory_plan(tiny_config("rm", tmp_path / "out", cutoff_len=300)).num_tokens == 600
    thrifty = memory_plan(tiny_config("sft", tmp_path / "out", gradient_checkpointing=True), longest=40)
    assert thrifty.activations < 0.8 * memory_plan(tiny_config("sft", tmp_path / "out"), longest=40).activations


def test_the_sum_is_of_its_parts(tiny_config, trained, tmp_path):
    plan = memory_plan(tiny_config("ppo", tmp_path / "out", reward_model=str(trained / "rm"), max_new_tokens=100))
    assert plan.training == plan.state + plan.activations + plan.logits
    assert plan.sampling == plan.state + plan.merged + plan.kv_cache + plan.logits
    assert plan.peak == max(plan.training, plan.sampling)
    assert plan.merged > 0


def test_stored_numbers_are_counted_without_loading(tiny_llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert stored_elements(tiny_llama) == sum(p.numel() for p in model.parameters())
    with pytest.raises(UserError, match="no safetensors files"):
        stored_elements(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        stored_elements(tmp_path)


def test_a_folder_without_a_model(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        skeleton(tmp_path, dtype=torch.float32)
    (tmp_path / "config.json").write_text('{"model_type": "none-such"}', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a causal language model"):
        skeleton(tmp_path, dtype=torch.float32)


def test_the_total_of_a_model(tiny_config, tmp_path):
    (model,) = memory_plan(tiny_config("sft", tmp_path / "out", finetuning_type="full")).models
    assert model.total == 16 * model.num_parameters  # weights, gradients and two moments in float32


def test_a_reference_of_its_own_is_beside_the_policy(tiny_config, tiny_llama, tmp_path):
    (alone,) = memory_plan(tiny_config("dpo", tmp_path)).models
    policy, reference = memory_plan(tiny_config("dpo", tmp_path, ref_model=str(tiny_llama))).models
    assert alone.roles == ("actor", "reference before training")
    assert (policy.roles, reference.roles) == (("actor",), ("reference before training",))
    assert (reference.weights, reference.gradients, reference.optimizer) == (policy.weights, 0, 0)
    smaller = memory_plan(tiny_config("dpo", tmp_path, ref_model=str(tiny_llama), ref_model_quantization_bit=4))
    assert smaller.models[0].weights == policy.weights
    assert smaller.models[1].weights < reference.weights
    quantised = memory_plan(tiny_config("dpo", tmp_path, ref_model=str(tiny_llama), quantization_bit=4))
    assert quantised.models[0].weights < policy.weights
    assert quantised.models[1].weights == reference.weights


def test_states_behind_frozen_layers_are_planned(tiny_config, trained, tmp_path):
    """As many numbers as the run keeps: a row for each token of the experience at its longest."""

    def planned(stage="ppo", **keys):
        reward = {"reward_model": str(trained / "rm")} if stage == "ppo" else {}
        return memory_plan(tiny_config(stage, tmp_path / "out", **reward, **keys), longest_prompt=20)

    top = planned(trainable_layers=1)
    assert top.lower_states == 4 * 28 * 32 * 4  # completions x tokens x dimensions x bytes
    assert top.training == top.state + top.activations + top.logits + top.lower_states
    assert planned(trainable_layers=1, critic="adapter").lower_states == 2 * top.lower_states
    assert planned(trainable_layers=1, ppo_buffer_size=2).lower_states == 2 * top.lower_states
    assert planned().lower_states == planned("sft", trainable_layers=1).lower_states == 0
    assert top.activations < planned().activations
    assert top.merged < planned().merged
