"""A reward adapter that both sides of the PPO comparison load: trained by posttrain, in LLaMA-Factory's layout.

    python -m benchmarks.compare.reward_adapter MODEL DATA FOLDER

trains on ``dpo_en_demo`` of ``DATA``. The layout is that of LLaMA-Factory 0.8 and peft 0.11: LoRA weights, the keys of
``adapter_config.json`` that this peft knows, and ``value_head.safetensors`` with ``v_head.summary.*``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

KNOWN = (
    *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha"),
    *("lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type", "use_dora", "use_rslora"),
)
FILES = ("adapter_model.safetensors", "value_head.safetensors")


def reward_adapter(model: Path, data: Path, folder: Path, *, steps: int = 12, rank: int = 8, seed: int = 42) -> Path:
    """The folder of the adapter, made unless it is there.

    Args:
        model: folder of the base. data: folder of ``dataset_info.json``.
        folder: where to put it. steps: of four pairs each. rank: on all linear layers.
        seed: of the order of the pairs.
    """
    if (folder / "adapter_config.json").is_file():
        return folder
    import posttrain

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        run, partial = Path(temporary) / "run", Path(temporary) / "adapter"
        posttrain.run_exp(
            {
                **{"model_name_or_path": str(model), "stage": "rm", "finetuning_type": "lora", "lora_rank": rank},
                **{"dataset": "dpo_en_demo", "dataset_dir": str(data), "cutoff_len": 512, "max_samples": 4 * steps},
                **{"output_dir": str(run), "per_device_train_batch_size": 4, "max_steps": steps, "seed": seed},
                **{"learning_rate": 2e-4, "save_strategy": "no", "report_to": "none", "disable_tqdm": True},
            }
        )
        partial.mkdir()
        for name in FILES:
            shutil.copy(run / name, partial / name)
        config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
        plain = {key: config[key] for key in KNOWN if key in config} | {"base_model_name_or_path": str(model)}
        (partial / "adapter_config.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")
        partial.rename(folder)
    return folder


def main() -> None:
    """Make the adapter and say where it is."""
    parser = argparse.ArgumentParser(description="Train a reward adapter that both sides load.")
    for name in ("model", "data", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    print(reward_adapter(args.model, args.data, args.folder, steps=args.steps))


if __name__ == "__main__":
    main()
