import pytest

from headcount import errors
from headcount.errors import HeadcountError, InputError, ModelError, RunError, TaskError, nearest

IDS = ["ahon", "ahon_ln", "awft", "awft_ln", "aeqd"]


def test_every_error_is_one_a_user_can_catch_by_the_base_class():
    for error in (InputError, ModelError, TaskError, RunError):
        assert issubclass(error, HeadcountError)
    assert issubclass(InputError, ValueError)
    assert not issubclass(ModelError, ValueError)


def test_nothing_else_is_an_error_class():
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes - {"Iterable"} == {"HeadcountError", "InputError", "ModelError", "TaskError", "RunError"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ahonln", "Did you mean ahon_ln or ahon?"),
        ("AHON_LN", "Did you mean ahon_ln or ahon?"),
        ("aeq", "Did you mean aeqd?"),
    ],
)
def test_nearest_names_the_closest(given, expected):
    assert nearest(given, IDS) == expected


def test_nearest_keeps_the_case_of_known_names():
    assert nearest("honor", ["HONOR", "Dormant"]) == "Did you mean HONOR?"


def test_nearest_lists_all_when_nothing_is_close():
    assert nearest("zzz", iter(["b", "a"])) == "Known: a, b."


def test_nearest_lists_at_most_twenty():
    known = [f"name{i:02}" for i in range(21)]
    assert nearest("zzz", known) == f"Known: {', '.join(known[:20])}, …."
