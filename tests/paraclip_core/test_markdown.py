"""No text of others comes alive in a cell."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from paraclip_core.markdown import inert, table

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
HOSTILE = (
    "```\n</code><script>alert(1)</script> ![x](http://evil.example/p.png) [y](javascript:1) | a |\n# h\n---\n`` ` ~~~"
)


def characters(text: str) -> str:
    """Texts are compared without what is escaped because nobody would see it."""
    return "".join(char for char in text if char.isprintable())


@given(st.text())
@example(HOSTILE)
@example("a\\|b `c` *d* __e__ <f> &amp; www.evil.example https://evil.example a@b.c \\")
def test_a_cell_is_shown_as_it_is(text: str) -> None:
    plain = characters(text)
    tokens = MARKDOWN.parse(table(("head", "next"), [(plain, "1")]))
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content for cell in cells][:2] == ["head", "next"] and len(cells) == 4
    assert {child.type for child in cells[2].children or ()} <= {"text", "text_special"}
    assert "".join(child.content for child in cells[2].children or ()) == " ".join(plain.split())


def test_what_hides_text_is_seen_links_are_broken_and_words_stay_readable() -> None:
    assert inert("a\u202eb\x1b[2J") == "a&#92;u202eb&#92;u001b&#91;2J"
    escaped = inert("https://evil.example WWW.evil.example a@evil.example")
    assert "://" not in escaped and "WWW." not in escaped and "@" not in escaped
    assert inert("too_few_words, CC-BY-4.0 (v1.0)") == "too_few_words, CC-BY-4.0 (v1.0)"
