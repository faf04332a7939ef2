"""Links out of docs/ become paths on the site."""

from scripts.docs_hooks import on_page_markdown


def test_a_link_to_a_file_outside_docs_becomes_its_path() -> None:
    assert (
        on_page_markdown("see [the records](../spin/data/records.py).") == "see the records (`spin/data/records.py`)."
    )
    assert on_page_markdown("see [spin/config](../spin/config).") == "see `spin/config`."


def test_other_links_stay() -> None:
    text = "see [clusters](clusters.md) and [Ray](https://ray.io)"
    assert on_page_markdown(text) == text
