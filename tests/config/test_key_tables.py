"""Every key of LLaMA-Factory and every argument of TRL has its row, and the pages in docs hold the tables of today."""

import importlib.util
import re
from pathlib import Path

import pytest

from posttrain.config import KEYS
from posttrain.config.foreign import FOREIGN
from posttrain.config.from_trl import from_trl
from posttrain.config.key_tables import fate, llamafactory_table, trl_keys, trl_table
from posttrain.config.renamed import RENAMED
from posttrain.config.translate import TRANSLATED

HERE = Path(__file__).parent


def keys_of(name):
    return (HERE / name).read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def script():
    path = HERE.parents[1] / "scripts" / "write_key_tables.py"
    spec = importlib.util.spec_from_file_location("write_key_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_in_docs_are_current(script):
    for page, text in script.pages().items():
        assert page.read_text(encoding="utf-8") == text, "run: python scripts/write_key_tables.py"
        assert text.count(script.BEGIN) == text.count(script.END) == 1


def test_every_key_of_llamafactory_has_one_row(script):
    page = (HERE.parents[1] / "docs" / "from-llama-factory.md").read_text(encoding="utf-8")
    rows = page.partition(script.BEGIN)[2].splitlines()
    first = [re.findall(r"`([^`]+)`", row.split(" | ")[0]) for row in rows if row.startswith("| `")]
    named = [key for keys in first for key in keys]
    assert sorted(named) == sorted(keys_of("llamafactory_keys.txt"))


def test_every_argument_of_trl_is_named_or_is_one_of_transformers():
    table = trl_table()
    for key in keys_of("trl_keys.txt"):
        known = key in KEYS or key in RENAMED or key in TRANSLATED or key in FOREIGN
        assert f"`{key}`" in table or known, key


@pytest.mark.parametrize("key", sorted(trl_keys()))
def test_what_the_table_says_of_an_argument_is_what_happens(key):
    """It is carried over, or lost with a reason; never unknown."""
    samples = {
        "loss_type": "dapo",
        "datasets": [{"path": "a"}],
        "kl_estimator": "k3",
        "importance_sampling_level": "sequence",
        "bnb_4bit_quant_type": "fp4",
        "reward_clip_range": "[-1, 1]",
        "generation_batch_size": 8,
        "scale_rewards": "batch",
        **dict.fromkeys(("label_smoothing", "lam"), 0.1),
        **dict.fromkeys(("normalize_advantages", "precompute_ref_log_probs", "use_bnb_nested_quant"), True),
        **dict.fromkeys(("whiten_rewards", "dataset_streaming"), True),
    }
    value = str(samples.get(key, 4))
    found = from_trl(["grpo", f"--{key}", value])
    assert not any("not a key that is known" in why for _, why in found.lost), found.lost


def test_a_key_that_nothing_is_said_of_is_noticed():
    with pytest.raises(ValueError, match="nothing is said of zzz"):
        llamafactory_table(["seed", "zzz"])


def test_fates_by_example():
    assert fate("seed").startswith("Honoured|Seed of")
    assert fate("evaluation_strategy") == "Read as something else|`eval_strategy`, with a note."
    assert fate("flash_attn").startswith("Ignored, with a note|Attention is computed")
    assert fate("use_badam").startswith("Refused|")
    assert "`kto_pair` is not supported" in fate("pref_loss")
    assert "Below 1 it is read as `warmup_ratio`" in fate("warmup_steps")
