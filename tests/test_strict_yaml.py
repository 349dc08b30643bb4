"""YAML files of strangers: plain data, or one sentence at once."""

from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headcount.errors import InputError
from headcount.strict_yaml import read_yaml


@pytest.fixture
def read(tmp_path):
    def read(content, **options):
        file = tmp_path / "some.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_yaml(file, **options)

    return read


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BOMB, "more than 50,000 entries, counting what its aliases repeat, in line 14"),
        (BOMB.replace("[", "{p: ").replace(", ", ", q: ").replace("]", "}"), "counting what its aliases repeat"),
        ("a: &a {x: 1}\n" + "b:\n" + "  - {<<: [" + "*a, " * 60_000 + "*a]}", "counting what its aliases repeat"),
        (
            f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 10}]",
            "more than 1,000,000 characters, counting what its aliases repeat, in line 2",
        ),
        (
            f"a: &a {'x' * 900}\nb: &b [{'*a, ' * 50}]\nc: &c {{d: *b}}\ne: [{'*c, ' * 30}]",
            "more than 1,000,000 characters",
        ),
        ("a: " + "[" * 300_000, "nested more than 32 deep, in line 1"),
        ("a: " + "{a: " * 200_000, "nested more than 32 deep, in line 1"),
        ("\n".join(" " * i + "a:" for i in range(40)), "nested more than 32 deep, in line 33"),
        ("x: 1\na: &a [*a]", "&a holds itself, in line 2"),
        ("a: " + "x" * 1_000_001, "more than 1,000,000 bytes"),
        ("x: 1\na: " + "9" * 5_000, "a number has 5,000 digits, in line 2"),
        ("a: " + "1:" * 100_000 + "1", "a number has 200,001 digits"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice, in line 3"),
        ("{a: {b: 1, 'b': 2}}", "the key 'b' stands twice, in line 1"),
        ("a: 1\n? [b]\n: 2", "a key is no text, in line 2"),
        ("a: !!python/object/apply:os.system ['true']", "the tag 'python/object/apply:os.system' stands for more"),
        ("a: !function utils.x", "the tag '!function' stands for more than data"),
        ("a: !!binary eA==", "the tag 'binary'"),
        ("!!python/name:os.system a: 1", "the tag 'python/name:os.system'"),
        ("a: !!float b", "could not convert"),
        ("a: 0x_", "invalid literal"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
        ("a: [1", "line 1"),
        ("a: *b", "found undefined alias"),
        (b"a: \xff", "codec can't decode"),
        (b"a: \x00", "#x0000"),
    ],
)
def test_refused_in_one_sentence(read, content, why):
    with pytest.raises(InputError, match="cannot be read as YAML: ") as refused:
        read(content)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_plain_is_read_as_it_is_meant(read):
    content = (
        "name: 2026-11-28\nbad: 2026-99-99\nsame: =\n1: one\nyes: on\nbase: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n"
    )
    assert read(content) == {
        "name": "2026-11-28", "bad": "2026-99-99", "same": "=", "1": "one", "yes": True,
        "base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3},
    }  # fmt: skip
    assert read("p: {q: &d {<<: &b {x: 1}, x: 2}}\ne: {<<: *d}") == {"p": {"q": {"x": 2}}, "e": {"x": 2}}
    assert read("a: !function utils.x", text_tags=["!function"]) == {"a": "utils.x"}
    assert read("a: 1\na: 2", repeated_keys=True) == {"a": 2}
    assert read("") is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(value=PLAIN)
def test_what_yaml_writes_comes_back(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    assert read_yaml(file) == value


@given(content=st.binary(max_size=60) | st.text("ab1:-[]{}&*!?<>|#,'\"\n \t=.~%@", max_size=40).map(str.encode))
def test_anything_else_is_a_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    with suppress(InputError):
        read_yaml(file)
