import warnings

import numpy as np
import pytest
import torch

from headcount.errors import InputError
from headcount.measure import measure_heads, token_ids
from headcount.models.batching import data_fingerprint
from headcount.models.instrument import instrument
from headcount.models.loading import fingerprint
from headcount.scores import select_scores

ROWS = [torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (4, 11, 1, 7, 7, 20)]


@pytest.fixture
def model(tiny):
    return tiny(num_hidden_layers=2, initializer_range=0.2)


def assert_same(table, expected):
    assert list(table.data_vars) == list(expected.data_vars)
    assert table["num_tokens"].values.tolist() == expected["num_tokens"].values.tolist()
    for name in expected.data_vars:
        np.testing.assert_allclose(table[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_each_input_gets_the_scores_it_has_alone(model):
    table = measure_heads(model, ROWS)
    assert table["num_tokens"].values.tolist() == [4, 11, 1, 7, 7, 20]
    for i, row in enumerate(ROWS):
        with instrument(model, scores="all") as probe, torch.no_grad():
            model(torch.tensor([row]))
        assert_same(table.isel(example=[i]), probe.scores)


@pytest.mark.parametrize("batch_tokens", [1, 15, 40, 10_000])
def test_the_size_of_batches_does_not_matter(model, batch_tokens):
    assert_same(measure_heads(model, ROWS, batch_tokens=batch_tokens), measure_heads(model, ROWS))


def test_neither_order_nor_company_matters(model):
    table = measure_heads(model, ROWS)
    order = [3, 0, 5, 1]
    assert_same(measure_heads(model, [ROWS[i] for i in order]), table.isel(example=order))


def test_the_table_and_its_attributes(model):
    table = measure_heads(model, ROWS, seed=3)
    assert list(table.data_vars) == [s.id for s in select_scores("all")]
    assert dict(table.sizes) == {"example": 6, "layer": 2, "head": 8}
    assert table["layer"].values.tolist() == [0, 1]
    assert table["head"].values.tolist() == list(range(8))
    assert {values.dtype for values in table.data_vars.values()} == {np.dtype("float32")}
    expected = {
        "model_fingerprint": fingerprint(model),
        "data_fingerprint": data_fingerprint(ROWS),
        "dtype": "float32",
        "seed": 3,
        "num_cut": 0,
        "torch_version": torch.__version__,
    }
    assert {name: table.attrs[name] for name in expected} == expected
    assert {"model", "headcount_version", "transformers_version"} <= table.attrs.keys()


def test_scores_are_chosen_by_id_or_alias_and_do_not_influence_each_other(model):
    everything = measure_heads(model, ROWS)
    for chosen, ids in (("HONOR", ["ahon_ln"]), (["random", "awft", "lthon_hn"], ["random", "awft", "lthon_hn"])):
        assert_same(measure_heads(model, ROWS, scores=chosen), everything[ids])


def test_the_seed_is_that_of_the_random_score(model):
    one, again, other = (measure_heads(model, ROWS, scores=["random", "ahon"], seed=seed) for seed in (1, 1, 2))
    assert one.equals(again)
    assert (one["random"] != other["random"]).all()
    np.testing.assert_array_equal(one["ahon"], other["ahon"])
    assert one["random"].min() >= 0
    assert one["random"].max() < 1


def test_texts_are_tokenised_by_the_models_tokenizer(model, letters):
    texts = ["Hello", "a longer text"]
    table = measure_heads(model, texts, tokenizer=letters)
    assert_same(table, measure_heads(model, [letters(text)["input_ids"] for text in texts]))
    assert table["num_tokens"].values.tolist() == [5, 13]  # one token a character


def test_token_ids_come_in_many_forms(letters):
    assert token_ids(((5, 6), [7]), None) == [[5, 6], [7]]
    assert token_ids([torch.tensor([5, 6]), np.array([7])], None) == [[5, 6], [7]]
    assert token_ids(["ab", [7]], letters) == [[70, 71], [7]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "No inputs were given"),
        ([[5], []], "Input 1 is empty"),
        (["a", ""], "Input 1 is empty"),
        (["a", " \n"], "Input 1 is empty"),
        ("a text", "inputs is a list of texts or of token-id lists, not a str"),
        (7, "not a int"),
        ([5, 6, 7], "Input 0 is neither a text nor a list of token ids, but 5"),
        ([[5, 6], ["a"]], r"Input 1 is neither .* but \['a'\]"),
        ([[5, 6.5]], r"Input 0 is neither .* but \[5, 6\.5\]"),
        ([[5], [6, 256]], r"Input 1 has the token id 256, and the model knows 0…255\. Use the tokenizer that belongs"),
        ([[5, -1]], "Input 0 has the token id -1, and"),
        (["one", "t\ud83dwo"], r"Input 1 holds half of a surrogate pair \('\\ud83d' at character 1\)"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(model, letters, inputs, message):
    with pytest.raises(InputError, match=message):
        measure_heads(model, inputs, tokenizer=letters)


def test_texts_need_a_tokenizer(model):
    with pytest.raises(InputError, match="Input 1 is a text: pass the model's tokenizer"):
        measure_heads(model, [[5], "text"])


def test_too_long_inputs_are_refused_or_cut(tiny):
    model = tiny(num_hidden_layers=1, max_position_embeddings=8)
    with pytest.raises(InputError, match=r"2 of 6 inputs are longer than the model's 8 positions \(input 1 has 11"):
        measure_heads(model, ROWS)
    with pytest.warns(UserWarning, match="2 of 6 inputs .* cut off"):
        table = measure_heads(model, ROWS, too_long="cut")
    assert table.attrs["num_cut"] == 2
    assert table["num_tokens"].values.tolist() == [4, 8, 1, 7, 7, 8]
    assert_same(table, measure_heads(model, [row[:8] for row in ROWS]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ["ahom"]}, "Unknown score 'ahom'"),
        ({"scores": []}, "No score was given"),
        ({"too_long": "skip"}, "too_long is 'refuse' or 'cut'"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_options_that_cannot_be_used_are_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        measure_heads(model, ROWS, **options)


def test_a_single_token_has_no_entropy_to_compare(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = measure_heads(model, [[5], [6]])
    # It attends to itself with weight 1, in every head: entropy 0, and no layer mean to divide by.
    assert (table["awft"] == 1).all()
    assert (table["awft_ln"] == 1).all()
    assert (table["aeqd"] == 0).all()
    assert table["aeqd_ln"].isnull().all()
    # Its output is its value.
    np.testing.assert_allclose(table["lthon"], table["ftvvn"], rtol=1e-5)
    np.testing.assert_allclose(table["lthon_hn"], 1, rtol=1e-5)
    assert table.drop_vars("aeqd_ln").to_array().notnull().all()


def test_progress_is_told(model):
    told = []
    measure_heads(model, ROWS, batch_tokens=20, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)
    assert sorted(told) == told


def test_running_out_of_memory_changes_no_number(model):
    expected = measure_heads(model, ROWS)
    fits = sum(map(len, ROWS)) // 2

    def fail(module, args):
        if args[0].shape[:2].numel() > fits:  # tokens of the packed batch
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.warns(UserWarning, match="halved"):
        table = measure_heads(model, ROWS)
    hook.remove()
    assert_same(table, expected)


def test_a_model_in_training_stays_so_and_keeps_its_gradients(model):
    model.train()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    measure_heads(model, ROWS[:1], scores="ahon")
    assert model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
