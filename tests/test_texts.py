import json

import pandas as pd
import pytest

from headcount.errors import InputError
from headcount.texts import load_texts


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        file = tmp_path / name
        if isinstance(content, pd.DataFrame):
            content.to_parquet(file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    return write


def test_a_txt_file_is_one_text_kept_as_it_is(write):
    assert load_texts([write("a.txt", "  Füße\n\nund Ähren\n")]) == ["  Füße\n\nund Ähren\n"]


def test_jsonl_lines_are_objects_or_strings(write):
    lines = ['{"text": "one", "n": 1}', "", '"two"', '{"text": "  "}', '{"text": "drei\\n"}']
    assert load_texts([write("a.jsonl", "\n".join(lines))]) == ["one", "two", "drei\n"]


def test_a_parquet_column(write):
    file = write("a.parquet", pd.DataFrame({"text": ["one", None, "", "two"], "other": ["x", "y", "z", "w"]}))
    assert load_texts([file]) == ["one", "two"]
    assert load_texts([file], column="other") == ["x", "y", "z", "w"]


def test_files_are_read_in_the_order_given_up_to_the_limit(write):
    sources = [write("b.txt", "b"), write("a.jsonl", '"a1"\n"a2"\nnot JSON'), write("c.txt", "c")]
    assert load_texts(sources, limit=3) == ["b", "a1", "a2"]
    assert load_texts([sources[0], sources[2]], limit=9) == ["b", "c"]


def test_empty_texts_do_not_count_towards_the_limit(write):
    assert load_texts([write("a.jsonl", '""\n" "\n"one"\n"two"')], limit=1) == ["one"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(write, limit):
    with pytest.raises(InputError, match=f"at least 1; got {limit}"):
        load_texts([write("a.txt", "a")], limit=limit)


@pytest.mark.parametrize("line", ["{", "{'text': 'x'}", '"a" "b"'])
def test_bad_json_is_named_by_its_line(write, line):
    with pytest.raises(InputError, match=r"Line 3 of .*a\.jsonl.* is not JSON"):
        load_texts([write("a.jsonl", f'"one"\n\n{line}\n')])


@pytest.mark.parametrize(
    ("line", "kind"), [("3", "int"), ("[1]", "list"), ("null", "NoneType"), ('{"text": 3}', "int")]
)
def test_a_line_that_holds_no_text_is_named(write, line, kind):
    with pytest.raises(InputError, match=f"Line 1 of .* holds a {kind} where a text was expected"):
        load_texts([write("a.jsonl", line)])


def test_a_missing_key_names_the_nearest(write):
    file = write("a.jsonl", json.dumps({"texts": "a", "id": 1}))
    with pytest.raises(InputError, match=r"Line 1 .* no 'text'\. Did you mean texts\?.*--text-column"):
        load_texts([file])


def test_a_missing_column_names_the_nearest(write):
    file = write("a.parquet", pd.DataFrame({"content": ["a"], "id": [1]}))
    with pytest.raises(InputError, match=r"no column 'context'\. Did you mean content\?.*--text-column"):
        load_texts([file], column="context")


def test_a_column_that_holds_no_texts_is_refused(write):
    with pytest.raises(InputError, match=r"Column 'id' of .* holds no texts"):
        load_texts([write("a.parquet", pd.DataFrame({"id": [1]}))], column="id")


def test_a_file_that_is_no_parquet_is_refused(write):
    with pytest.raises(InputError, match=r"not a Parquet file"):
        load_texts([write("a.parquet", "text")])


def test_a_truncated_parquet_file_is_refused(write, tmp_path):
    file = write("a.parquet", pd.DataFrame({"text": [f"text {i}" for i in range(1000)]}))
    content = (tmp_path / "a.parquet").read_bytes()
    # The middle overwritten: the footer is whole, the pages are not.
    broken = content[:100] + b"\xff" * (len(content) // 2) + content[100 + len(content) // 2 :]
    (tmp_path / "a.parquet").write_bytes(broken)
    with pytest.raises(InputError, match=r"a\.parquet"):
        load_texts([file])


@pytest.mark.parametrize(("name", "content"), [("a.txt", b""), ("a.txt", b" \n"), ("a.jsonl", b""), ("a.jsonl", b"\n")])
def test_a_file_without_text_is_refused(write, name, content):
    with pytest.raises(InputError, match=r"There is no text in.*at least one"):
        load_texts([write(name, content)])


def test_text_that_is_not_utf8_is_refused(write):
    with pytest.raises(InputError, match=r"a\.txt.* cannot be read as UTF-8"):
        load_texts([write("a.txt", b"\xff\xff")])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])  # Python writes a mark with each
def test_a_byte_order_mark_names_the_encoding_and_is_no_text(write, encoding):
    assert load_texts([write("a.txt", "Äpfel\r\nund Birnen".encode(encoding))]) == ["Äpfel\nund Birnen"]
    assert load_texts([write("a.md", "# Äpfel".encode(encoding))]) == ["# Äpfel"]
    lines = '{"text": "Äpfel"}\r\n\r\n"Birnen"\r\n'
    assert load_texts([write("a.jsonl", lines.encode(encoding))]) == ["Äpfel", "Birnen"]


def test_byte_order_marks_of_big_endian_files(write):
    assert load_texts([write("a.txt", b"\xfe\xff" + "Äpfel".encode("utf-16-be"))]) == ["Äpfel"]
    assert load_texts([write("a.txt", b"\0\0\xfe\xff" + "Äpfel".encode("utf-32-be"))]) == ["Äpfel"]


def test_marks_of_joined_files_and_of_texts_are_no_text(write):
    lines = '\ufeff{"text": "one"}\n\ufeff{"text": "two"}\n"\\ufeffthree"\n"\ufeff"\n\ufeff\n"fo\ufeffur"'
    assert load_texts([write("a.jsonl", lines)]) == ["one", "two", "three", "fo\ufeffur"]
    assert load_texts([write("a.parquet", pd.DataFrame({"text": ["\ufeffone", "\ufeff"]}))]) == ["one"]


def test_line_ends_inside_texts_end_no_line(write):
    # Line and paragraph separators are characters of JSON strings.
    assert load_texts([write("a.jsonl", '"one\u2028two\x85three"\n"four"')]) == ["one\u2028two\x85three", "four"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl"])
def test_another_encoding_is_named_by_file_line_and_byte(write, name):
    content = '"one"\n\n"Äpfel"\n'.encode("latin-1")
    with pytest.raises(InputError, match=rf"Line 3 of '.*{name}' cannot be read as UTF-8 \(byte 0xc4\).*iconv"):
        load_texts([write(name, content)])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_utf_16_without_a_mark_is_refused(write, name):
    with pytest.raises(InputError, match=rf"Line 1 of '.*{name}' holds a NUL character.*UTF-16"):
        load_texts([write(name, '"apples"'.encode("utf-16-le"))])


def test_utf_16_that_is_cut_is_refused(write):
    with pytest.raises(InputError, match=r"a\.txt' cannot be read as text"):
        load_texts([write("a.txt", "apples".encode("utf-16")[:-1])])


def test_a_nul_character_is_named_by_where_it_is(write):
    with pytest.raises(InputError, match=r"Line 2 of '.*a\.jsonl' holds a NUL"):
        load_texts([write("a.jsonl", '"one"\n"t\\u0000wo"')])
    with pytest.raises(InputError, match=r"Line 3 of '.*a\.txt' holds a NUL"):
        load_texts([write("a.txt", "one\n\nt\0wo")])
    with pytest.raises(InputError, match=r"Row 3 of '.*a\.parquet' holds a NUL"):
        load_texts([write("a.parquet", pd.DataFrame({"text": ["one", None, "t\0wo"]}))])


def test_halves_of_surrogate_pairs_are_replaced_and_counted(write):
    lines = ['"whole \\ud83d\\ude00"', '"abc \\ud83d def"', '{"text": "\\ude00\\ud83d"}']
    with pytest.warns(UserWarning, match=r"2 texts held halves of surrogate pairs.*First: Line 2 of '.*a\.jsonl'"):
        texts = load_texts([write("a.jsonl", "\n".join(lines))])
    assert texts == ["whole \U0001f600", "abc \ufffd def", "\ufffd\ufffd"]


def test_json_that_is_nested_without_end_is_refused(write):
    with pytest.raises(InputError, match=r"Line 1 of '.*a\.jsonl' is not JSON"):
        load_texts([write("a.jsonl", "[" * 200_000)])


def test_parquet_columns_of_bytes_hold_no_texts(write):
    with pytest.raises(InputError, match=r"Column 'text' of .* holds no texts"):
        load_texts([write("a.parquet", pd.DataFrame({"text": [b"one"]}))])


def test_hub_rows_are_read_as_files_are(monkeypatch):
    rows = [{"text": "\ufeffone"}, {"text": None}, {"text": "t\0wo"}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    assert load_texts(["owner/name"], limit=1) == ["one"]
    with pytest.raises(InputError, match="Row 3 of 'owner/name' holds a NUL"):
        load_texts(["owner/name"], limit=2)


@pytest.mark.parametrize("name", ["missing.txt", "no/such/file.jsonl", "plain", "folder/missing.parquet"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"There is no file '{name}'"):
        load_texts([name])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"no file"):
        load_texts([str(tmp_path)])


def test_an_unknown_kind_of_file_is_refused(write):
    with pytest.raises(InputError, match=r"a\.csv' is none of \.txt, \.md, \.jsonl, \.parquet"):
        load_texts([write("a.csv", "text\na")])


def test_a_hub_name_needs_a_limit():
    with pytest.raises(InputError, match=r"'owner/name' .* from the hub .*--limit"):
        load_texts(["owner/name"])


def test_a_hub_data_set_is_streamed_up_to_the_limit(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return ({"text": f"text {i}"} for i in range(10**9))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_texts(["owner/name:config"], limit=2) == ["text 0", "text 1"]
    assert asked == [(("owner/name", "config"), {"split": "train", "streaming": True})]
    with pytest.raises(InputError, match=r"no column 'body'"):
        load_texts(["owner/name"], column="body", limit=1)


def test_a_hub_column_that_holds_no_texts_is_refused(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": 3}])
    with pytest.raises(InputError, match=r"Column 'text' of 'owner/name' holds no texts"):
        load_texts(["owner/name"], limit=1)


def test_a_hub_that_does_not_answer_is_one_error(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"'owner/name' is no file here.*ConnectionError: no route\)"):
        load_texts(["owner/name"], limit=1)
