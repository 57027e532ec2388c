"""posttrain's slot decoder: greedy, all prompts queued for ``slots`` slots, as ``posttrain generate`` runs it."""

from __future__ import annotations

import torch
from window import Window, read_rows, read_spec, write_result

from posttrain import ChatModel


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    rows = read_rows(spec)
    model = ChatModel(
        {
            "model_name_or_path": spec["model"],
            "do_sample": False,
            "max_new_tokens": spec["max_new_tokens"],
            "repetition_penalty": 1.0,
        }
    )
    if list(model.template.stop_token_ids) != spec["stop_token_ids"]:
        raise RuntimeError("answers stop at other tokens than on the other side")
    window = Window()
    with window:
        answers = model.complete([row["prompt_ids"] for row in rows], num_slots=spec["slots"])
    lengths = [len(answer.token_ids) for (answer,) in answers]
    write_result(
        window,
        live_tokens=sum(lengths),
        generated_tokens=sum(lengths),
        samples=len(lengths),
        first_loss=float(sum(answers[0][0].token_ids)),
        notes=["first_loss is the sum of the first answer's token ids", f"lengths {lengths}"],
    )


if __name__ == "__main__":
    main()
