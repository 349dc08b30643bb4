"""Chat templates, and prompts that are too long."""

import pytest

from headcount.errors import InputError
from headcount.evaluation.benchmark import Benchmark
from headcount.evaluation.evaluate import evaluate
from headcount.evaluation.language_model import HeadcountLM
from headcount.policies import Random
from headcount.tasks import load_tasks


def test_a_prompt_too_long_is_cut_and_counted(tiny, letters):
    # One letter a token: five-shot prompts of MMLU have more than 512.
    evaluation = evaluate(
        tiny(), ["mmlu_anatomy"], [Random(0.1)], tokenizer=letters, offline=True, limit=2, num_fewshot=5
    )
    assert evaluation.num_truncated == 2
    assert evaluation.outcomes["num_tokens"].tolist() == [512] * 4


def test_a_chat_template_changes_the_prompts(tiny, letters, own_tasks):
    model, tasks = tiny(), load_tasks(["sums_a"], offline=True, include_path=own_tasks)
    plain = Benchmark(model, tasks, tokenizer=letters).inputs()
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
    letters.chat_template = template
    try:
        chat = Benchmark(model, tasks, tokenizer=letters, chat_template=True).inputs()
    finally:
        letters.chat_template = None
    # The last letter of each continuation is predicted, never read; the space before the answer goes with the template.
    assert letters.decode(plain[0]) == "sums_a 0+0 = "
    assert letters.decode(chat[0]).startswith("[user] sums_a 0+0 =\n[assistant]")


def test_a_chat_template_that_is_not_there_is_refused(ask):
    with pytest.raises(InputError, match=r"no chat template.*--no-chat-template"):
        ask(["sums_a"], chat_template=True)


def test_a_chat_template_that_refuses_is_one_sentence_and_one_that_refuses_system_messages_goes_without(
    tiny, letters, own_tasks, monkeypatch
):
    model, tasks = tiny(), load_tasks(["sums_a"], offline=True, include_path=own_tasks)
    monkeypatch.setattr(letters, "chat_template", "{{ raise_exception('Never.') }}")
    with pytest.raises(InputError, match=r"chat template cannot be used: TemplateError: Never\. Leave it off"):
        Benchmark(model, tasks, tokenizer=letters, chat_template=True)
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No.') }}{% endif %}{{ messages[0]['content'] }}"
    )
    monkeypatch.setattr(letters, "chat_template", refuses)
    lm = HeadcountLM(model, tokenizer=letters)
    talk = [{"role": role, "content": role} for role in ("system", "user")]
    assert lm.apply_chat_template(talk) == "user"
    lm.chat.close()


def test_a_prompt_beyond_any_size_is_refused(ask, monkeypatch):
    monkeypatch.setattr("headcount.evaluation.benchmark.MAX_CHARACTERS", 5)
    with pytest.raises(InputError, match=r"Question 0 of sums_a has a prompt of \d+ characters, more than 5\."):
        ask(["sums_a"])
