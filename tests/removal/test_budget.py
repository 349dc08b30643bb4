import json

import pytest
import torch

from headcount.errors import InputError
from headcount.evaluation.benchmark import Benchmark
from headcount.removal.budget import Budget, _prefixes, select_within_budget
from headcount.removal.selection import Selection
from tests.runs import SUMS, write_errors

ROWS = [torch.randint(3, 99, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 20)]


@pytest.fixture
def benchmark(tiny, letters, tmp_path):
    """A tiny model whose first layer's first group matters to forty questions and whose other heads do nothing."""
    model = tiny(num_hidden_layers=2)
    with torch.no_grad():
        for layer, keep in enumerate((32, 0)):
            model.model.layers[layer].self_attn.o_proj.weight[:, keep:] = 0
        model.model.layers[0].self_attn.o_proj.weight[:, :32] *= 40
    questions = [json.dumps({"q": f"{i % 10}+{i // 10}", "a": i % 3}) for i in range(40)]
    (tmp_path / "sums.jsonl").write_text("\n".join(questions))
    (tmp_path / "sums.yaml").write_text(SUMS.format(data=tmp_path / "sums.jsonl"))
    return Benchmark(model, ["sums"], tokenizer=letters, include_path=tmp_path, offline=True)


def candidates(benchmark, heads):
    return Selection.of(benchmark.lm.model, heads, name="tiny", kind="head", chosen={"score": "by hand"})


IDLE = [(1, head) for head in range(8)] + [(0, head) for head in range(4, 8)]


def test_the_search_ends_at_the_first_removal_that_is_not_shown_to_be_within(benchmark):
    heads = IDLE + [(0, head) for head in range(3)]
    selection, trials = select_within_budget(
        benchmark.lm.model, candidates(benchmark, heads), benchmark, margin=0.15, step=0.25, how="zero"
    )
    # Sixteen heads in steps of four: 4, 8 and 12 idle ones change no answer; the last three change many.
    assert trials["num_heads"].tolist() == [4, 8, 12, 15]
    assert trials["within_margin"].tolist()[:3] == ["shown"] * 3
    assert trials["within_margin"].tolist()[3] != "shown"
    assert trials["change"].tolist()[:3] == [0, 0, 0]
    assert trials["change_bound"].between(-0.15, 0).tolist()[:3] == [True] * 3
    assert selection.heads == tuple(IDLE)
    assert selection.chosen["share"] == 0.75
    assert selection.chosen["held-out questions"] == 40
    assert selection.chosen["score"] == "by hand"


def test_questions_that_heads_were_chosen_on_are_not_asked(benchmark):
    used = benchmark.questions[:10]
    _, trials = select_within_budget(
        benchmark.lm.model, candidates(benchmark, IDLE), benchmark, margin=0.2, used=used, step=1, how="zero"
    )
    assert trials["num_questions"].tolist() == [30]
    _, trials = select_within_budget(
        benchmark.lm.model, candidates(benchmark, IDLE), benchmark, margin=0.3, used=used, step=1, how="zero",
        num_questions=20,
    )  # fmt: skip
    assert trials["num_questions"].tolist() == [20]
    with pytest.raises(InputError, match="was used to choose heads"):
        select_within_budget(
            benchmark.lm.model, candidates(benchmark, IDLE), benchmark, margin=0.2, used=benchmark.questions
        )


def test_too_few_questions_show_nothing(benchmark):
    # 0 of 5 changed: with 95% confidence the true share may still be far beyond a point.
    with pytest.raises(
        InputError, match=r"Removing 4 heads is not shown.*fall measured on 5 held-out questions is 0.0"
    ):
        select_within_budget(
            benchmark.lm.model,
            candidates(benchmark, IDLE),
            benchmark,
            margin=0.01,
            step=0.25,
            how="zero",
            num_questions=5,
        )


def test_a_budget_of_errors_is_that_of_their_complement(benchmark, letters, tmp_path):
    write_errors(tmp_path / "errors", questions=40)
    model = benchmark.lm.model
    asked = Benchmark(model, ["errs"], tokenizer=letters, include_path=tmp_path / "errors", offline=True)
    heads = IDLE + [(0, head) for head in range(3)]
    (right, kept), (wrong, tried) = (
        select_within_budget(
            model, candidates(benchmark, heads), asked, margin=0.15, step=0.25, how="zero", metric=metric
        )
        for metric in ("acc", "err")
    )
    assert right.heads == wrong.heads
    assert kept["change"].abs().max() > 0
    for name in ("num_heads", "within_margin", "confidence_within"):
        assert tried[name].tolist() == kept[name].tolist()
    for name in ("change", "change_bound"):
        assert tried[name].tolist() == pytest.approx((-kept[name]).tolist())
    assert tried["accuracy"].tolist() == pytest.approx((1 - kept["accuracy"]).tolist())


def test_prefixes_cut_no_unit_in_two(tiny):
    heads = [(layer, head) for layer in (1, 0) for head in range(8)]
    selection = Selection.of(tiny(), heads, name="tiny", kind="group", chosen={})
    assert [len(heads) for heads in _prefixes(selection, 3)] == [4, 8, 12, 16]
    assert [len(heads) for heads in _prefixes(selection, 8)] == [8, 16]
    assert [len(heads) for heads in _prefixes(selection.model_copy(update={"kind": "head"}), 6)] == [6, 12, 16]


@pytest.mark.parametrize("text", ["1%", "1 point", "0 points of piqa", "a point of piqa", "1 point of piqa,"])
def test_budgets_that_are_not_understood(text):
    with pytest.raises(InputError, match="1 point of arc_easy,piqa"):
        Budget.parse(text)


def test_budget():
    assert Budget.parse("1 point of piqa") == Budget(margin=0.01, tasks=("piqa",))
    assert Budget.parse(" 2.5 points of a,b ") == Budget(margin=0.025, tasks=("a", "b"))
