import copy
import os

import pytest

from headcount.errors import InputError
from headcount.models import chat
from headcount.models.chat import ChatTemplate, expects_chat

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [{"role": "user", "content": 'Ähren\n"{\ud83d'}, {"role": "assistant", "content": "Yes"}]


@pytest.fixture(scope="module")
def template(letters):
    """Gives a tokenizer's ChatTemplate another source: one process serves the tests, until one of them has it stopped."""
    tokenizer = copy.deepcopy(letters)
    shared = ChatTemplate(tokenizer)

    def with_source(source):
        tokenizer.chat_template = source
        return shared

    yield with_source
    shared.close()


def refused(template, said):
    with pytest.raises(InputError, match=rf"The model's chat template cannot be used: {said}.*--no-chat-template"):
        template.render(TALK)


@pytest.mark.parametrize("prompt", [True, False])
def test_conversations_are_rendered_as_by_the_tokenizer(template, letters, prompt):
    ours = template(TEMPLATE)
    theirs = copy.deepcopy(letters)
    theirs.chat_template = TEMPLATE
    expected = theirs.apply_chat_template(
        TALK, tokenize=False, add_generation_prompt=prompt, continue_final_message=not prompt
    )
    assert expected.startswith('<user>Ähren\n"{\ud83d</s><assistant>Yes')
    for _ in range(2):
        assert ours.render(TALK, add_generation_prompt=prompt) == expected
    ours.close()
    assert ours.render(TALK, add_generation_prompt=prompt) == expected


def test_options_are_variables_of_the_template(template):
    assert template("{{ enable_thinking }}{{ eos_token }}").render(TALK, enable_thinking=False) == "False</s>"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", r"TemplateError: Roles must alternate\. Leave"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ nothing.there }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError: Range too big"),
        ("{{ 'x' * 20000000 }}", "it makes 20,000,000 characters of one conversation"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence(template, source, said):
    refused(template(source), said)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = messages | length + 8 %}{{ n ** (n ** n) }}",  # one operation, which nothing inside the process could stop
    ],
)
def test_a_template_without_end_is_stopped_and_the_next_conversation_is_rendered(template, monkeypatch, source):
    monkeypatch.setattr(chat, "_SECONDS", 1.0)
    one = template("{% if messages[0]['content'] == 'loop' %}" + source + "{% endif %}done")
    with pytest.raises(InputError, match="it takes longer than 1 seconds"):
        one.render([{"role": "user", "content": "loop"}])
    assert one.render(TALK) == "done"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is bounded on Linux")
@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{{ 'x' * 10**11 }}",
        "{{ [0] * 10**10 }}",
    ],
)
def test_a_template_that_grows_without_end_is_stopped(template, source):
    refused(template(source), "it takes (more than 256 MiB of memory|longer)")


def test_a_process_that_is_gone_is_noticed(template):
    one = template(TEMPLATE)
    one.render(TALK)
    one._process.kill()
    one._process.wait()
    with pytest.raises(InputError, match="it takes longer than 10 seconds, or too much memory"):
        one.render(TALK)
    assert one.render(TALK).endswith("<assistant>")


class Tokenizer:
    chat_template = TEMPLATE


HASH = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"/home/me/.cache/huggingface/hub/models--Org--Small-135M-Instruct/snapshots/{HASH}", True),
        (f"~/hub/models--Org--Small-135M-Instruct/snapshots/{HASH}/model-Q4_K_M.gguf", True),
        (f"/hub/models--Org--Qwen2.5-7B/snapshots/{HASH}", False),
        (f"/hub/models--chat-it--Qwen2.5-7B/snapshots/{HASH}", False),
        ("/data/Small-135M-Instruct/main", True),
        ("/data/Small-135M-Instruct/checkpoint-500/", True),
        ("/data/gemma-2-9b-it/final_model/model.gguf", True),
        ("runs/Small-Instruct-v2/epoch_3/hf", True),
        ("/home/chatterjee/llama-base", False),
        ("/home/chatterjee/checkpoint-500", False),
        ("/home/assistant/main", False),
        ("/data/it/main", False),
        ("/data/instruct-models/main", False),
        ("/data/chat/Llama-3-8B", False),
        ("Small-Instruct/other-base", False),
        ("someone/Einstein-7B", False),
        ("someone/chatglm3-6b", True),
    ],
)
def test_the_name_decides_whichever_folder_has_it(name, expected):
    found, why = expects_chat(name, Tokenizer())
    assert found is expected
    assert ("says that it expects one" in why) is expected


def test_a_relative_path_is_looked_at_whole(tmp_path, monkeypatch):
    inside = tmp_path / "Small-135M-Instruct" / "main"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for name in (".", "./", "../main"):
        assert expects_chat(name, Tokenizer()) == (True, "the name 'Small-135M-Instruct' says that it expects one")
