import pytest

from experiments.sentences import sentence


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("seed must be positive\nmore"), "seed must be positive"),
        (RuntimeError(" \n halt "), "halt"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_an_error_is_one_line_led_by_its_kind_where_that_says_something(error, said):
    assert sentence(error) == said
