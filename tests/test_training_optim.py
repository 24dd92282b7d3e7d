"""Weight decay groups, Muon's share, and the pass that scales and clips."""

import pytest
import torch
from torch import nn

from rlhf_lab.training.optim import make_optimizers, scale_and_clip
from tests.training_helpers import quiet, tiny_llama


def names_of(model, parameters):
    found = {parameter: name for name, parameter in model.named_parameters()}
    return sorted(found[p] for p in parameters)


def test_decay_spares_norms_and_embeddings():
    model = tiny_llama()
    (adamw,) = make_optimizers(model, quiet("x", weight_decay=0.1))
    decayed, spared = adamw.param_groups
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    assert all("proj" in name for name in names_of(model, decayed["params"]))
    assert all("norm" in n or "embed" in n for n in names_of(model, spared["params"]))
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_muon_takes_the_hidden_matrices():
    model = tiny_llama()
    muon, adamw = make_optimizers(model, quiet("x", optimizer="muon"))
    hidden = names_of(model, [p for group in muon.param_groups for p in group["params"]])
    rest = names_of(model, [p for group in adamw.param_groups for p in group["params"]])
    assert len(hidden) == 2 * 7 and all("proj" in name for name in hidden)
    assert "model.embed_tokens.weight" in rest and sorted(hidden + rest) == names_of(model, model.parameters())


def test_muon_leaves_an_untied_head_to_adamw_and_refuses_a_model_without_matrices():
    model = tiny_llama()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    muon, _ = make_optimizers(model, quiet("x", optimizer="muon"))
    assert "lm_head.weight" not in names_of(model, [p for group in muon.param_groups for p in group["params"]])
    with pytest.raises(ValueError, match="muon"):
        make_optimizers(nn.LayerNorm(3), quiet("x", optimizer="muon"))


def test_scale_and_clip_by_hand():
    """Summed gradients (6, 0) and (0, 8) over a weight of 2: the mean is (3, 4), its norm 5; clipped to 1: (.6, .8)."""
    for max_norm, factor in ((1.0, 0.2), (0.0, 1.0), (7.0, 1.0)):
        a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        a.grad, b.grad = torch.tensor([6.0, 0.0]), torch.tensor([0.0, 8.0])
        norm = scale_and_clip([a, b, nn.Parameter(torch.zeros(1))], torch.tensor(2.0), max_norm)
        assert float(norm) == pytest.approx(5.0)
        torch.testing.assert_close(a.grad, torch.tensor([3.0, 0.0]) * factor)
        torch.testing.assert_close(b.grad, torch.tensor([0.0, 4.0]) * factor)


def test_scale_and_clip_refuses_a_loss_without_gradient():
    with pytest.raises(ValueError, match="gradient"):
        scale_and_clip([nn.Parameter(torch.zeros(2))], torch.tensor(1.0), 1.0)
