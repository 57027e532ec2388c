"""The head alone equals the model's own logits, for families that scale or cap them."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from posttrain.models.logits import logits_of

SIZE = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaForCausalLM, lambda: LlamaConfig(**SIZE)),
        (CohereForCausalLM, lambda: CohereConfig(**SIZE, logit_scale=0.3)),
        (GraniteForCausalLM, lambda: GraniteConfig(**SIZE, logits_scaling=4.0)),
        (Gemma2ForCausalLM, lambda: Gemma2Config(**SIZE, head_dim=8, final_logit_softcapping=2.0)),
    ],
)
def test_equals_the_models_forward(model_class, config):
    torch.manual_seed(0)
    model = model_class(config()).eval()
    ids = torch.tensor([[3, 8, 15, 4]])
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(logits_of(model, hidden), model(input_ids=ids).logits[0])
