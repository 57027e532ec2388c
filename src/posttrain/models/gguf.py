"""Turn a GGUF file, a quantized model in one file, into a plain Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

from posttrain.errors import RunError
from posttrain.models.load import quiet

_MARKS = ("quantization_config", "_name_or_path", "_model_name_or_path")
_TOLERANCE = 0.05


def convert_gguf(gguf: Path, folder: Path, *, probe: str, probe_loss: float, splits_digits: bool = False) -> None:
    """Write ``gguf`` as a Hugging Face folder in float32, the one dtype that loses nothing of scale * q + minimum.

    Args:
        gguf: the file.
        folder: created.
        probe: a text that the model must find as likely as ``probe_loss`` says, mean nats per token.
        splits_digits: the tokenizer reads numbers digit by digit, a rule that GGUF names but does not spell out.

    Raises:
        RunError: the installed transformers makes of the file a model that does not predict ``probe``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader draws a progress bar of its own that no setting turns off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        loaded.eval()
        config = type(loaded.config).from_dict(
            {name: value for name, value in loaded.config.to_dict().items() if name not in _MARKS}
        )
        tokenizer.model_max_length = config.max_position_embeddings
        if splits_digits:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        ids = torch.tensor([tokenizer(probe)["input_ids"]])
        with torch.no_grad():
            loss = float(loaded(input_ids=ids, labels=ids).loss)
        if not abs(loss - probe_loss) < _TOLERANCE:
            raise RunError(
                f"{gguf.name} was read, but the model it gave does not predict text as it should (loss {loss:.3f}, "
                f"expected {probe_loss:.3f}): the installed transformers reads GGUF differently. "
                "Install the versions pinned in constraints.txt."
            )
        # A model loaded from GGUF stays marked as quantized and refuses to be saved; its weights are plain by now,
        # so they move into a model that never carried the marks.
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
