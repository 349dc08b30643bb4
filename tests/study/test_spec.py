import pickle
import re

import pytest

from headcount.analysis import ShareSearch, UntilDecided
from headcount.errors import InputError
from headcount.scores import registry, select_scores
from headcount.study.spec import ModelSpec, Study, Tasks, Texts
from headcount.thresholding import SHARES

EXAMPLES = ["demo", "paper", "cross_dataset", "fineweb_edu"]


def test_names_stand_for_models_and_tasks():
    study = Study(models=["demo", {"model": "some/model", "dtype": "float32"}], data=["piqa", {"texts": "a/b.txt"}])
    assert study.models == (ModelSpec(model="demo"), ModelSpec(model="some/model", dtype="float32"))
    assert study.data == (Tasks(tasks=("piqa",)), Texts(texts=("a/b.txt",)))
    assert [data.label for data in study.data] == ["piqa", "b"]
    assert len(list(study.cells())) == 4
    assert study.score_ids() == [score.id for score in select_scores("all")]
    assert study.shares == SHARES
    assert Study(models=["demo"], data=["piqa"], scores="HONOR").score_ids() == ["ahon_ln"]


def test_sections_can_be_switched_on():
    study = Study(models=["demo"], data=["piqa"], scores=["awft", "random"], shares=[0, 0.1])
    assert (study.rule(), study.search, study.num_policies()) == (None, None, 3)
    assert Study(**study.model_dump() | {"until_decided": True}).rule() == UntilDecided()
    assert Study(**study.model_dump() | {"until_decided": UntilDecided(margin=0.2)}).rule() == UntilDecided(margin=0.2)
    rule = Study(**study.model_dump() | {"until_decided": {"margin": 0.02}}).rule()
    assert rule == UntilDecided(margin=0.02)
    searching = Study(**study.model_dump() | {"search": {"resolution": 0.05}})
    assert searching.rule() == UntilDecided()  # each look ends when it is decided
    assert searching.search == ShareSearch(resolution=0.05)
    assert searching.num_policies() == 1 + 2 * 4  # 0.3 in 4 halvings: 0.3 itself, then to 0.15, 0.075 and 0.0375
    assert Study(**study.model_dump() | {"until_decided": False, "search": False}) == study


def test_a_study_survives_its_own_dump_and_a_pickle():
    study = Study(models=["demo"], data=["piqa", {"texts": ["a.txt"], "limit": 3}], scores=["awft"], seeds=[1, 2])
    assert Study(**study.model_dump(mode="json")) == study
    assert pickle.loads(pickle.dumps(study)) == study


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"models": None}, ["models: "]),
        ({"models": []}, ["models: is empty"]),
        ({"models": [{}]}, ["models[0].model: is missing."]),
        ({"models": [{"model": "x", "dtyp": "a"}]}, ["models[0].dtyp: there is no such field. Did you mean dtype?"]),
        ({"models": ["a", "a"]}, ["models: two of them are called 'a': give one a `name:`"]),
        ({"models": ["a/b", {"model": "c", "name": "a--b"}]}, ["models: two of them are called 'a--b'"]),
        ({"data": [{"task": "x"}]}, ["data[0].tasks: is missing.", "data[0].task: there is no such field."]),
        ({"data": ["a", {"tasks": "b", "limit": 2.5}]}, ["data[1].limit: a whole number of questions"]),
        ({"data": [{"tasks": "b", "limit": 0}]}, ["data[0].limit: input should be greater than 0, not 0."]),
        ({"data": [{"texts": "b", "limt": 0}]}, ["data[0].limt: there is no such field. Did you mean limit?"]),
        ({"data": [{"texts": []}]}, ["data[0].texts: is empty"]),
        ({"scores": ["ahom", "awft"]}, ["scores: Unknown score 'ahom'. Did you mean ahon"]),
        ({"scores_from": ["nowhere.py"]}, ["scores_from: There is no file 'nowhere.py'"]),
        ({"name": "../x"}, ["name: '../x' cannot name a folder: it holds '/'."]),
        ({"shares": [0.1, 1.2]}, ["shares[1]: input should be less than or equal to 1, not 1.2."]),
        ({"dtype": "float8"}, ["dtype: input should be 'auto'", "not 'float8'."]),
        ({"seeds": []}, ["seeds: is empty"]),
        ({"shard": "many"}, ["shard: input should be a valid integer", "not 'many'."]),
        ({"exclude_layers": [-1]}, ["exclude_layers[0]: "]),
        ({"until_decided": {"margn": 0.1}}, ["until_decided.margn: there is no such field. Did you mean margin?"]),
        ({"until_decided": {"margin": 5}}, ["until_decided.margin: input should be less than 1, not 5."]),
        ({"search": {"largest": 0}}, ["search.largest: input should be greater than 0, not 0."]),
        ({"modles": ["a"]}, ["modles: there is no such field. Did you mean models?"]),
    ],
)
def test_each_wrong_field_is_named(fields, named):
    with pytest.raises(InputError) as refused:
        Study(**{"models": ["demo"], "data": ["piqa"]} | fields)
    for text in named:
        assert text in str(refused.value)


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(InputError, match=r"has 3 wrong fields\. .*models: .*shares\[0\].*seeds"):
        Study(models=[], data=["piqa"], shares=["x"], seeds=[])


def test_of_thousands_of_wrong_fields_the_first_are_named():
    with pytest.raises(InputError, match=r"has 1000 wrong fields\. .*seeds\[19\].* And 980 more\.$") as refused:
        Study(models=["demo"], data=["piqa"], seeds=["x"] * 1000)
    assert "seeds[20]" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("models: [demo\n", "cannot be read as YAML"),
        ("", "holds no fields"),
        ("- demo", "holds no fields"),
        ("models: [demo]", r"my study.yaml: The study has a wrong field. data: is missing."),
        ("models: [demo]\ndata: [piqa]\n1: 2", r"1: there is no such field"),
        ("models: [demo]\ndata: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_files_that_are_no_study(tmp_path, content, named):
    (tmp_path / "my study.yaml").write_text(content)
    with pytest.raises(InputError, match=named):
        Study.read(tmp_path / "my study.yaml")


def test_a_file_is_read_and_names_the_study(tmp_path):
    (tmp_path / "mine.yaml").write_text("models: [demo]\ndata: [piqa]\n")
    assert Study.read(tmp_path / "mine.yaml") == Study(name="mine", models=["demo"], data=["piqa"])
    with pytest.raises(InputError, match="no study 'yours.yaml'.*cross_dataset, demo, fineweb_edu, paper"):
        Study.read("yours.yaml")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_studies_that_come_along_are_right(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study.read(f"{name}.yaml")
    assert study == Study.read(name)
    assert study.name == name


@pytest.mark.demo
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_tasks_of_the_studies_that_come_along_exist(name):
    from headcount.tasks import task_names

    known = set(task_names())
    assert {task for data in Study.read(name).data if isinstance(data, Tasks) for task in data.tasks} <= known


def test_the_papers_study_is_the_papers():
    study = Study.read("paper")
    # The models of its Table 2, as the authors' published files call them.
    names = {
        "Llama-3.1-8B", "Llama-3.1-8B-Instruct", "Llama-3.2-3B", "Llama-3.2-3B-Instruct", "OLMo-2-1124-7B",
        "OLMo-2-1124-7B-DPO", "OLMo-2-1124-7B-Instruct", "OLMo-2-1124-7B-SFT", "Qwen2.5-0.5B", "Qwen2.5-1.5B",
        "Qwen2.5-14B", "Qwen2.5-3B", "Qwen2.5-7B", "Qwen2.5-7B-Instruct",
    }  # fmt: skip
    assert {model.model.split("/")[1] for model in study.models} == names
    owners = {model.model.split("/")[0] for model in study.models}
    assert owners == {"meta-llama", "Qwen", "allenai"}
    assert len(study.score_ids()) == 14
    assert study.shares == SHARES
    tuned = re.compile("Instruct|SFT|DPO")
    assert all((model.chat_template is True) == bool(tuned.search(model.model)) for model in study.models)
    assert study.data == (Tasks(tasks=("mmlu",), num_fewshot=5),)


OWN = """
import headcount, pathlib

pathlib.Path({mark!r}).touch()

@headcount.score("own", name="o", needs=["value_norm"], inactive_when="high", unit="1", source="s")
def own(m):
    return m.value_norm
"""


@pytest.fixture
def own_scores(tmp_path, monkeypatch):
    """A file with a score of one's own, and one that is there once the file was run."""
    for name in ("_SCORES", "_NAMES", "_FILES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    file, mark = tmp_path / "scores.py", tmp_path / "ran"
    file.write_text(OWN.format(mark=str(mark)))
    return file, mark


def test_files_of_scores_run_with_the_study_and_not_before(own_scores, tmp_path):
    file, mark = own_scores
    (tmp_path / "s.yaml").write_text(f"models: [demo]\ndata: [piqa]\nscores: [HONOR, own]\nscores_from: ['{file}']\n")
    study = Study.read(tmp_path / "s.yaml")
    assert study.score_ids() == ["ahon_ln", "own"]
    assert study.num_policies() == 1 + 2 * 6
    assert Study.saved(study.model_dump(mode="json")) == study
    assert not mark.exists()
    assert study.with_own_scores().score_ids() == ["ahon_ln", "own"]
    assert mark.exists()
    with pytest.raises(InputError, match="Unknown score 'owm'"):
        Study(models=["demo"], data=["piqa"], scores=["owm"], scores_from=[str(file)]).with_own_scores()


def test_a_saved_study_is_read_without_its_files():
    study = Study(models=["demo"], data=["piqa"])
    saved = study.model_dump(mode="json") | {"scores_from": ["/gone.py"], "scores": ["of_that_file"]}
    assert Study.saved(saved).score_ids() == ["of_that_file"]


def test_a_study_that_says_no_name_has_its_files_as_far_as_it_names_a_folder(tmp_path):
    for stem, name in (("my study (2)", "my-study--2"), (".hidden", "hidden"), ("nul", "_nul")):
        (tmp_path / f"{stem}.yaml").write_text("models: [demo]\ndata: [piqa]\n")
        assert Study.read(tmp_path / f"{stem}.yaml").name == name


def test_labels_that_some_file_systems_take_for_one_are_refused():
    with pytest.raises(InputError, match="two of them are called"):
        Study(models=["Llama", "llama"], data=["piqa"])
