"""The article on an HTML page: its words with their marks, what the page says of it, and pages that are none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.sources.html_pages import MAX_TAG_WORDS, MAX_TAGS, extract

SENTENCES = [f"កសិករ{n}នាក់ដាំស្រូវនៅរដូវវស្សា ហើយច្រូតកាត់នៅរដូវប្រាំងក្នុងស្រុកទី{n}។ " for n in range(2, 6)]
ARTICLE = "".join(f"<p>{sentence * 2}</p>" for sentence in SENTENCES)
HEAD = """<title>ស្រូវ\u200bវស្សា</title><meta property="article:section" content="កសិកម្ម">
<meta property="article:published_time" content="2025-11-03T08:00:00+07:00">"""


def page(article: str, head: str = HEAD) -> str:
    menu = "<nav><a href='/'>ទំព័រដើម</a> <a href='/a'>អំពីយើង</a></nav>"
    return f"<html><head>{head}</head><body>{menu}<article>{article}</article><footer>រក្សាសិទ្ធិ</footer></body></html>"


def test_the_article_is_found_with_what_the_page_says_of_it():
    row = extract(page(ARTICLE), "a.html", "https://a.example/x")
    assert row.pop("text") == "\n".join((sentence * 2).strip() for sentence in SENTENCES)
    assert row == {
        "title": "ស្រូវវស្សា",
        "category": "កសិកម្ម",
        "published_at": "2025-11-03",
        "url": "https://a.example/x",
        "place": "a.html",
    }


@pytest.mark.parametrize("mark", ["\u200b", "&#8203;", "&#x200B;", "&ZeroWidthSpace;", "<wbr>", "<wbr/>"])
def test_word_marks_stay_however_they_are_written(mark):
    row = extract(page(ARTICLE.replace("ដាំ", f"{mark}ដាំ")), "a.html")
    assert (row["text"] or "").count("\u200bដាំ") == ARTICLE.count("ដាំ")


def test_a_year_in_the_text_is_no_date_of_publication():
    row = extract(page(f"<p>កាលពីឆ្នាំ 1995 មានទឹកជំនន់ធំមួយ។</p>{ARTICLE}", head=""), "a.html")
    assert row["published_at"] is None


@pytest.mark.parametrize(
    ("html", "rule", "reason"),
    [
        ("<html><body></body></html>", "missing_text", "a.html: no article was found"),
        ("", "missing_text", "a.html: no article was found"),
        ("\0\x01\x02", "missing_text", "a.html: no article was found"),
        ("<div>" * 200_000, "too_complex", "200,000 tags"),
        ("<p " + "a=1 " * 500_000 + ">", "too_complex", "a tag of 500,001 words"),
    ],
)
def test_a_page_without_an_article_says_why(html, rule, reason):
    row = extract(html, "a.html")
    assert row["rule"] == rule
    assert reason in (row["reason"] or "")
    assert len(row["text"] or "") <= 1_000


def test_a_long_picture_in_a_tag_is_no_bomb():
    picture = f"<img src='data:image/png;base64,{'A' * MAX_TAG_WORDS * 10}'>"
    assert extract(page(picture + ARTICLE), "a.html").get("rule") is None


def test_a_page_at_the_limit_is_read():
    many = "".join(f"<p>កថាខណ្ឌ {n}</p>" for n in range(MAX_TAGS // 20))
    assert "កថាខណ្ឌ 3" in (extract(page(many), "a.html")["text"] or "")


@given(
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from(
                ["<div>", "</p>", "<p", "<!--", "<script>", "&#0;", "<table><tr>", "]]>", "<?xml", "<a href="]
            ),
        ),
        max_size=40,
    )
)
@settings(max_examples=60)
def test_no_page_breaks_the_reading(pieces):
    row = extract("".join(pieces), "a.html")
    assert row["place"] == "a.html"
    assert row.get("rule") or row["text"]
