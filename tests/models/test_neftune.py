"""Noise reaches the embeddings of a model in training, scaled by the row, and never those of one that answers."""

import torch

from posttrain.models.forward import prepare_trunk, trunk
from posttrain.models.neftune import add_noise, row_lengths
from posttrain.models.packing import packed

ROWS = [[9, 8, 10, 11, 12], [13] * 20, [13] * 20 + [14, 15, 16]]


def seen_by(model):
    """What the first layer is given, of the last forward."""
    seen = []
    model.get_decoder().layers[0].register_forward_pre_hook(
        lambda module, args, keywords: seen.append(args[0] if args else keywords["hidden_states"]), with_kwargs=True
    )
    return seen


def test_lengths_of_packed_rows(make_batch):
    plan = packed(make_batch(ROWS))
    lengths = row_lengths(plan)
    # the second and third row share 20 tokens, which count as the longer one's
    assert lengths.tolist() == [5] * 5 + [23] * 23


def test_noise_in_training_only(make_model, make_batch):
    batch = make_batch(ROWS[:2])
    for packs in (True, False):
        model = make_model("llama")
        if packs:
            prepare_trunk(model)
        plain = trunk(model, batch)[0]
        add_noise(model, 5.0)
        seen = seen_by(model)
        assert torch.equal(trunk(model, batch)[0], plain)
        model.train()
        with torch.no_grad():
            assert torch.equal(trunk(model, batch)[0], plain)
        torch.manual_seed(4)
        noisy = trunk(model, batch)[0]
        assert not torch.allclose(noisy, plain)
        torch.manual_seed(4)
        assert torch.equal(trunk(model, batch)[0], noisy)
        clean, with_noise = seen[0].flatten(0, 1), seen[2].flatten(0, 1)
        live = torch.ones(len(clean), dtype=torch.bool) if packs else batch.attention_mask.flatten()
        noise = (with_noise - clean)[live].abs()
        short, long = noise[:5].max(), noise[5:].max()
        width = clean.shape[-1]
        assert 0.9 < short / (5.0 / (5 * width) ** 0.5) <= 1.0001
        assert 0.9 < long / (5.0 / (20 * width) ** 0.5) <= 1.0001
