"""Walking gives what reading the changed model from the start gives, in families with blocks of several kinds."""

import pytest
import torch

from headcount.errors import ModelError
from headcount.models.capabilities import can_restart
from headcount.models.observe import attention_modules
from headcount.models.projection import output_projection
from headcount.moments import Covariance, Mean
from headcount.removal.fitting import Fitting
from headcount.removal.head_outputs import head_output_statistics, walk_layers
from headcount.removal.replace import parameters_restored
from tests.models.families import build

pytestmark = pytest.mark.usefixtures("tiny")  # one thread

ROWS = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 20, 9, 1)]


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma3_text", "jamba", "qwen3_next", "deepseek_v3", "opt", "bamba", "falcon_h1"]
)
def test_later_layers_are_read_on_the_changed_model(family):
    model = build(family)
    modules = attention_modules(model)
    before = model(torch.tensor(ROWS[:1])).logits
    projections = [output_projection(module) for module in modules.values()]
    layers = list(modules)[::2] + list(modules)[1::2][:1]  # not all, and not in order
    seen = []
    reports = []
    with parameters_restored(projections):
        fitting = Fitting(rows=ROWS, batch_tokens=32)
        walk = walk_layers(model, fitting, layers, progress=lambda *done: reports.append(done))
        for layer, found in walk:
            (expected,) = head_output_statistics(model, Fitting(rows=ROWS), Covariance, layers=[layer]).values()
            assert found.count == expected.count == 11 + 19 + 8
            torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-3, atol=1e-6)
            projection = output_projection(modules[layer])
            projection.weight = torch.nn.Parameter(projection.weight.roll(1, 0))
            seen.append(layer)
    assert seen == sorted(layers)
    assert reports[-1] == (3 * len(layers), 3 * len(layers))
    assert torch.equal(model(torch.tensor(ROWS[:1])).logits, before)


@pytest.mark.parametrize("walking", [False, True])
def test_a_batch_that_does_not_fit_is_never_counted_twice(walking, tiny):
    """Some layers have been read when memory runs out in a later one: half of the batch cannot be read again."""
    model, fitting = tiny(), Fitting(rows=ROWS)
    assert can_restart(model)  # seen on a few tokens, which do fit

    def full(*_):
        raise torch.OutOfMemoryError

    model.model.layers[2].register_forward_pre_hook(full)
    with pytest.raises(ModelError, match=r"A batch of \d+ tokens does not fit in memory.*--batch-tokens"):
        dict(walk_layers(model, fitting, [2])) if walking else head_output_statistics(model, fitting, Mean)
