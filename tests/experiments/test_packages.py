import sys

import pytest

from experiments import packages


def test_commands_are_the_packages_on_the_path_and_nothing_else(folder):
    for name in ("two_words", "_private", "no_package"):
        (folder / "packages" / name).mkdir(parents=True)
        if name != "no_package":
            (folder / "packages" / name / "__init__.py").write_text('"""Do two things.\n\nAnd more."""\n')
    (folder / "packages" / "module.py").write_text("")
    found = packages.names()
    assert {"closed-form", "two-words"} <= set(found)
    assert not {"-private", "no-package", "module", "cli", "claims"} & set(found)
    assert packages.summary(packages.load("two_words")) == "Do two things."
    assert packages.load("two-words") is packages.load("two_words") is sys.modules["experiments.two_words"]


def test_the_line_of_a_package_is_that_of_its_config_unless_it_has_a_summary(package):
    package("lined", "pass")
    assert packages.summary(packages.load("lined")) == "Written by a test."
    package("summed", "pass", more='SUMMARY = "Say so."')
    assert packages.summary(packages.load("summed")) == "Say so."


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["closed-fom", "cli", "..", "../closed_form", ""])
def test_a_name_that_is_no_package_is_not_imported(name):
    with pytest.raises(ValueError, match="there is no experiment"):
        packages.load(name)


def test_only_a_near_name_is_proposed():
    assert packages.nearest("digts", ["digits", "guidance"]) == "; the nearest is 'digits'"
    assert packages.nearest("xyzzy", ["digits", "guidance"]) == ""
