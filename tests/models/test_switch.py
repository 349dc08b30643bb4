"""One model and several users: each gets its own numbers or a sentence, and the model is as it was."""

import asyncio
import contextlib
import copy
import io
import threading
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from headcount.errors import ModelError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.policies import Fixed, Random
from tests.models.test_instrument import TOKENS, logits, traces

POLICY = Fixed([(0, 0), (1, 3)])


@pytest.fixture
def model(tiny):
    """Whose logits and traces are the same afterwards."""
    model = tiny(initializer_range=0.2)
    units_of(model)
    before, found = logits(model), traces(model)
    yield model
    assert torch.equal(logits(model), before)
    assert traces(model) == found


@contextlib.contextmanager
def hooked(module, act):
    def before(*_):
        act()

    hook = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def zeroed_logits(model):
    with instrument(model, policy=POLICY):
        return logits(model)


# Blocks at once


def test_a_block_inside_a_block_is_refused(model):
    expected = zeroed_logits(model)
    with instrument(model, policy=POLICY) as outer:
        for inner in (
            lambda: instrument(model, scores=["ahon"]).__enter__(),
            lambda: instrument(model.base_model, scores=["ahon"]).__enter__(),
            lambda: measure_heads(model, TOKENS.tolist()),
        ):
            with pytest.raises(ModelError, match="inside a headcount block already"):
                inner()
        assert torch.equal(logits(model), expected)
        assert units_of(model).num_units == 24
    assert outer.off.sizes["example"] == len(TOKENS)


def test_blocks_of_two_models_may_be_closed_in_any_order(model, tiny):
    other = tiny(seed=5)
    expected, of_other = zeroed_logits(model), zeroed_logits(other)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(instrument(model, policy=POLICY))
    second.enter_context(instrument(other, policy=POLICY))
    assert torch.equal(logits(model), expected)
    first.close()
    assert torch.equal(logits(other), of_other)
    second.close()


def test_a_block_in_a_generator_is_open_until_that_is_closed(model):
    def held():
        with instrument(model, policy=POLICY) as probe:
            yield probe

    expected, generator = zeroed_logits(model), held()
    next(generator)
    assert torch.equal(logits(model), expected)
    with pytest.raises(ModelError, match="inside a headcount block already"):
        next(held())
    generator.close()


def test_two_models_of_one_configuration_are_not_run_at_once(model):
    other = type(model)(model.config).eval()
    before, expected = logits(other), zeroed_logits(model)
    with instrument(model, policy=POLICY) as probe:
        with pytest.raises(ModelError, match="of one that shares its configuration"):
            logits(other)
        with pytest.raises(ModelError, match="or one that shares its configuration or layers"):
            instrument(other).__enter__()
        assert torch.equal(logits(model), expected)
    assert probe.off.sizes["example"] == len(TOKENS)
    assert torch.equal(logits(other), before)


# Threads and tasks


def in_thread(act):
    found = []

    def run():
        try:
            found.append(act())
        except ModelError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_does_not_share_a_block(model):
    before, expected = logits(model), zeroed_logits(model)
    with instrument(model, policy=POLICY) as probe:
        assert "another thread or task opened" in str(in_thread(lambda: logits(model)))
        assert "inside a headcount block already" in str(in_thread(lambda: zeroed_logits(model)))
        assert torch.equal(logits(model), expected)
    assert probe.off.sizes["example"] == len(TOKENS)
    assert torch.equal(in_thread(lambda: logits(model)), before)
    assert torch.equal(in_thread(lambda: zeroed_logits(model)), expected)


def test_a_pass_that_another_threads_block_overtakes_is_refused(model):
    inside, opened = threading.Event(), threading.Event()

    def wait():
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            opened.wait()

    expected, found = zeroed_logits(model), []
    with hooked(model.model.layers[1], wait):
        thread = threading.Thread(target=lambda: found.append(in_this_thread(model)))
        thread.start()
        inside.wait()
        with instrument(model, policy=POLICY):
            opened.set()
            thread.join()
            assert torch.equal(logits(model), expected)
    assert "another thread or task opened" in str(found[0])


def in_this_thread(model):
    try:
        return logits(model)
    except ModelError as error:
        return error


def test_many_threads_get_their_own_numbers_or_a_sentence(model):
    before = logits(model)
    policies = [Fixed([(layer, head)]) for layer in range(2) for head in range(2)]
    expected = []
    for policy in policies:
        with instrument(model, policy=policy):
            expected.append(logits(model))
    wrong = []

    def user(number):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                if number < len(policies):
                    with instrument(model, policy=policies[number]) as probe:
                        found = logits(model)
                    if probe.off.sizes["example"] != len(TOKENS) or not torch.equal(found, expected[number]):
                        wrong.append(number)
                elif not torch.equal(logits(model), before):
                    wrong.append(number)
            except ModelError:
                continue

    threads = [threading.Thread(target=user, args=(number,)) for number in range(len(policies) + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_task_does_not_share_a_block_and_a_thread_for_this_one_does(model):
    async def with_block():
        with instrument(model, policy=POLICY) as probe:
            await asyncio.sleep(0.05)
            found = await asyncio.to_thread(logits, model)
        return probe.off.sizes["example"], found

    async def without():
        await asyncio.sleep(0.01)
        return in_this_thread(model)

    async def both():
        return await asyncio.gather(with_block(), without())

    expected = zeroed_logits(model)
    (seen, found), beside = asyncio.run(both())
    assert seen == len(TOKENS)
    assert torch.equal(found, expected)
    assert "another thread or task opened" in str(beside)


# Passes that end otherwise than they began


def test_a_pass_after_an_interrupt_is_right(model):
    with instrument(model, policy=Random(0.4), scores=["ahon"]) as probe:
        expected = logits(model)

        def interrupt():
            raise KeyboardInterrupt

        for at in (model.model, model.model.layers[1].mlp, model.lm_head):
            with hooked(at, interrupt), pytest.raises(KeyboardInterrupt):
                logits(model, torch.tensor([[9, 9], [3, 3]]))
            assert torch.equal(logits(model), expected)
            torch.testing.assert_close(model.lm_head(model.model(TOKENS).last_hidden_state), expected)
    assert probe.off.sizes["example"] == 7 * len(TOKENS)


def test_a_model_called_inside_its_own_pass_is_refused(model):
    with instrument(model, policy=POLICY):
        again = iter([lambda: logits(model)])
        with (
            hooked(model.model.layers[1], lambda: [act() for act in again]),
            pytest.raises(ModelError, match="or the model was called inside its own"),
        ):
            logits(model)


def test_a_block_opened_during_a_pass_is_its_own(model):
    before, expected, found = logits(model), zeroed_logits(model), []

    def measure():
        if not found:
            found.append(None)
            found.append(zeroed_logits(model))

    with hooked(model.model.layers[1], measure):
        assert torch.equal(logits(model), before)
    assert torch.equal(found[1], expected)


def test_a_pass_that_a_block_overtakes_is_refused(model):
    with contextlib.ExitStack() as stack:
        opening = iter([instrument(model, policy=POLICY)])

        def overtake():
            for block in opening:
                stack.enter_context(block)

        with (
            hooked(model.model.layers[1], overtake),
            pytest.raises(ModelError, match="outside its model's forward pass"),
        ):
            logits(model)


def test_attention_switched_away_or_put_in_inside_a_block_is_refused(model):
    with instrument(model, policy=POLICY):
        model.set_attn_implementation("eager")
        with pytest.raises(ModelError, match="ran 0 of the model's 3 attention layers"):
            logits(model)
    layer = model.model.layers[1]
    other = copy.deepcopy(layer)
    for module in other.modules():
        if hasattr(module, "config"):
            module.config = model.config
    with instrument(model, policy=POLICY):
        model.model.layers[1] = other
        with pytest.raises(ModelError, match="or it was put in afterwards"):
            logits(model)
        model.model.layers[1] = layer


# Copies and files made inside a block


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("made", [copy.deepcopy, pickled])
def test_a_copy_made_inside_a_block_is_the_model_itself(model, made):
    before, found = logits(model), traces(model)
    with instrument(model, policy=Random(0.4)) as probe:
        copies = [made(model) for _ in range(3)]
        assert torch.equal(logits(copies[0]), before)
    assert probe.off.sizes["example"] == 0
    assert torch.equal(logits(copies[1]), before)
    with instrument(copies[2], policy=POLICY):
        assert torch.equal(logits(copies[2]), zeroed_logits(model))
    for copied in copies:
        assert torch.equal(logits(copied), before)
        assert traces(copied) == found
        assert "_prefill" not in vars(copied)


def test_a_model_saved_inside_a_block_is_the_model_itself(tiny, tmp_path):
    model = tiny()
    before = logits(model)
    model.save_pretrained(tmp_path / "outside")
    with instrument(model, policy=POLICY):
        model.save_pretrained(tmp_path / "inside")
    texts = [(tmp_path / side / "config.json").read_text() for side in ("inside", "outside")]
    assert texts[0] == texts[1]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "inside")), before)
