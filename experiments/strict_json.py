"""Strict JSON from files that may be damaged: every error is one sentence with file and line."""

import json
import math
import re
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """Read a text file, or raise ValueError with one sentence."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def parse(text: str, path: Path) -> Any:
    """Parse strict JSON (no NaN, no Infinity, no number beyond float64), naming file and line of an error."""

    def refuse(token):
        raise ValueError(token)

    def number(token):
        value = float(token)
        return value if math.isfinite(value) else refuse(token)

    def integer(token):
        return int(token) if len(token) < 300 else refuse(token)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number, parse_int=integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: malformed JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{path}:1: malformed JSON (nested too deeply)") from None
    except ValueError as error:
        token = str(error)
        found = re.search(rf"(?<![^\s:,\[]){re.escape(token)}", text)
        line = text[: found.start() if found else 0].count("\n") + 1
        raise ValueError(f"{path}:{line}: malformed JSON ({token[:20]} is not a finite number)") from None


def line_of_element(text: str, index: int) -> int:
    """Find the line on which the given element of a top-level list starts; the text must be valid JSON."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    for _ in range(index):
        _, position = decoder.raw_decode(text, _skip(text, position))
    return text[: _skip(text, position)].count("\n") + 1


def _skip(text: str, position: int) -> int:
    """Move past white space and the comma between two elements."""
    while text[position] in " \t\r\n,":
        position += 1
    return position
