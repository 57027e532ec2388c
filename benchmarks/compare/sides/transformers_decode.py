"""transformers' ``generate``: greedy, in batches of ``slots`` prompts, each until its last row has ended."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from window import Window, read_rows, read_spec, write_result


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    rows = read_rows(spec)
    tokenizer = AutoTokenizer.from_pretrained(spec["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval()
    lengths, window, first = [], Window(), None
    for start in range(0, len(rows), spec["slots"]):
        prompts = [row["prompt_ids"] for row in rows[start : start + spec["slots"]]]
        batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        with window, torch.no_grad():
            out = model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=spec["max_new_tokens"],
                eos_token_id=spec["stop_token_ids"],
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = out[:, batch["input_ids"].shape[1] :].tolist()
        lengths += [length(answer, set(spec["stop_token_ids"])) for answer in answers]
        first = first if first is not None else float(sum(answers[0][: lengths[0]]))
    write_result(
        window,
        live_tokens=sum(lengths),
        generated_tokens=sum(lengths),
        samples=len(lengths),
        first_loss=first,
        notes=["first_loss is the sum of the first answer's token ids", f"lengths {lengths}"],
    )


def length(answer: list[int], stops: set[int]) -> int:
    """Tokens up to the one that stops, and that one."""
    return next((place + 1 for place, token in enumerate(answer) if token in stops), len(answer))


if __name__ == "__main__":
    main()
