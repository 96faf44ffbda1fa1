"""Every fault of a JSON file is one sentence with file and line."""

import pytest

from experiments import strict_json


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[\n {"a": 1,\n]', 3, "malformed JSON ("),
        ("", 1, "malformed JSON (Expecting value)"),
        ('["NaN",\n {"a": NaN}]', 2, "malformed JSON (NaN is not a finite number)"),
        ('{"a":\n\n-Infinity}', 3, "malformed JSON (-Infinity is not a finite number)"),
        ('{"a": 1,\n"b": 1e999}', 2, "malformed JSON (1e999 is not a finite number)"),
        ("[1,\n" + "9" * 5000 + "]", 2, "malformed JSON (99999999999999999999 is not a finite number)"),
        ("[" * 100_000, 1, "malformed JSON (nested too deeply)"),
    ],
)
def test_malformed_json_is_named_with_file_and_line(text, line, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        strict_json.parse(text, tmp_path / "x.json")
    assert str(caught.value).startswith(f"{tmp_path}/x.json:{line}: {message}")


def test_sound_json_is_read_as_it_is(tmp_path):
    assert strict_json.parse('{"a": [1, 2.5, null, "NaN"]}', tmp_path) == {"a": [1, 2.5, None, "NaN"]}


def test_files_that_are_no_text_are_named(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="x: not UTF-8 text"):
        strict_json.read_text(tmp_path / "x")
    with pytest.raises(ValueError, match="missing: cannot be read"):
        strict_json.read_text(tmp_path / "missing")


@pytest.mark.parametrize(("index", "line"), [(0, 2), (1, 2), (2, 5)])
def test_the_line_of_an_element_is_where_it_starts(index, line):
    assert strict_json.line_of_element('[\n {"a": "]\\n"}, [2,\n3]\n,\n {}]', index) == line
