import numpy as np
import pytest
import torch
from torch import nn

import headcount.models.projection as projections
from headcount.errors import ModelError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.models.projection import head_slices, output_projection, projection_factor


def assert_norms_agree(projection: nn.Module, weight: torch.Tensor, heads: int, head_dim: int) -> None:
    """``weight`` [hidden, head · head_dim]: the norm of R_h o is that of W_h o, with W_h cut out by hand."""
    with torch.no_grad():
        factor = projection_factor(projection, heads, head_dim, like=weight)
        outputs = torch.randn(20, heads, head_dim)
        for h in range(heads):
            slice_ = weight[:, h * head_dim : (h + 1) * head_dim]
            expected = torch.stack([(slice_ @ o).norm() for o in outputs[:, h]])
            torch.testing.assert_close((outputs[:, h] @ factor[h].mT).norm(dim=-1), expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("heads", "head_dim", "hidden"), [(4, 8, 32), (2, 4, 64), (2, 16, 8)])
def test_factor_keeps_norms(bias, heads, head_dim, hidden):
    projection = nn.Linear(heads * head_dim, hidden, bias=bias)
    if bias:
        nn.init.normal_(projection.bias, std=10)
    assert_norms_agree(projection, projection.weight, heads, head_dim)


def test_factor_keeps_norms_of_a_projection_that_loses_dimensions():
    projection = nn.Linear(8, 16, bias=False)
    nn.init.zeros_(projection.weight[:, 2:4])  # head 0 lost two of its four dimensions
    with torch.no_grad():
        projection.weight[:, 4:] = 0  # head 1 contributes nothing
    assert_norms_agree(projection, projection.weight, 2, 4)


def test_factor_keeps_norms_of_gpt2s_transposed_projection(tiny):
    model = tiny("gpt2", initializer_range=0.2)
    projection = output_projection(model.transformer.h[0].attn)
    nn.init.normal_(projection.bias)
    assert_norms_agree(projection, projection.weight.T, 8, 8)


def test_slices_are_the_columns_of_each_head():
    projection = nn.Linear(6, 5)
    slices = head_slices(projection, 2, 3, like=projection.weight)
    assert slices.shape == (2, 5, 3)
    assert not slices.requires_grad
    for h in range(2):
        torch.testing.assert_close(slices[h], projection.weight[:, 3 * h : 3 * h + 3])


def test_slices_are_float32_whatever_the_models_dtype():
    projection = nn.Linear(6, 5, bias=False).bfloat16()
    slices = head_slices(projection, 2, 3, like=projection.weight)
    assert slices.dtype == torch.float32
    torch.testing.assert_close(slices[0], projection.weight[:, :3].float())
    assert projection_factor(projection, 2, 3, like=projection.weight).dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "name", "attention"),
    [
        ("llama", "o_proj", lambda m: m.model.layers[0].self_attn),
        ("gpt2", "c_proj", lambda m: m.transformer.h[0].attn),
        ("gpt_neox", "dense", lambda m: m.gpt_neox.layers[0].attention),
        ("phi", "dense", lambda m: m.model.layers[0].self_attn),
    ],
)
def test_the_projection_is_found_in_each_family(tiny, family, name, attention):
    module = attention(tiny(family, num_hidden_layers=1))
    assert output_projection(module) is getattr(module, name)


def test_a_module_without_a_known_projection_is_refused_by_name():
    class OddAttention(nn.Module):
        pass

    with pytest.raises(ModelError, match=r"OddAttention has no output projection .*fhon, fhon_ln.* Leave them out"):
        output_projection(OddAttention())


def test_a_models_projections_are_factored_once_and_again_when_they_have_changed(tiny, monkeypatch):
    factored = []
    monkeypatch.setattr(
        projections, "projection_factor", lambda *a, **k: factored.append(a[0]) or projection_factor(*a, **k)
    )
    model, rows = tiny(), [[5, 6, 7], [8, 9]]
    first = measure_heads(model, rows, scores=["fhon"])
    assert len(factored) == 3
    with torch.enable_grad(), instrument(model, scores=["fhon"]) as probe:
        model(torch.tensor(rows[:1])).logits.sum().backward()
        assert len(factored) == 3
        changed = model.model.layers[1].self_attn.o_proj
        changed.weight.data.mul_(2)  # which PyTorch does not count as a change
        model(torch.tensor(rows[:1]))
    assert factored[3:] == [changed]
    np.testing.assert_allclose(probe.scores["fhon"][1, 1], 2 * probe.scores["fhon"][0, 1], rtol=1e-5)
    again = measure_heads(model, rows, scores=["fhon"])
    assert len(factored) == 4
    np.testing.assert_allclose(again["fhon"][:, 1], 2 * first["fhon"][:, 1], rtol=1e-5)


def test_where_there_is_no_qr_the_factor_is_made_in_main_memory(monkeypatch):
    class Slices:
        """As on MPS, which has no QR."""

        device = torch.device("mps")

        def cpu(self):
            return head_slices(layer, 2, 3, like=layer.weight)

    layer = nn.Linear(6, 5, bias=False)
    expected, placed = projection_factor(layer, 2, 3, like=layer.weight), []
    monkeypatch.setattr(projections, "head_slices", lambda *_, **__: Slices())
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: placed.append(device) or self)
    assert torch.equal(projection_factor(layer, 2, 3, like=layer.weight), expected)
    assert placed == [torch.device("mps")]
