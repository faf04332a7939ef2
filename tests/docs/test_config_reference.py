"""The reference of config keys is the one that the docstrings of the config give."""

from scripts.config_reference import PAGE, escape, write_reference


def test_the_reference_of_config_keys_is_up_to_date() -> None:
    message = "run .venv/bin/python scripts/config_reference.py and commit docs/configuration_reference.md"
    assert PAGE.read_text() == write_reference(), message


def test_a_text_with_a_column_separator_stays_in_its_cell() -> None:
    assert escape("a | b of ``x``") == "a \\| b of `x`"
