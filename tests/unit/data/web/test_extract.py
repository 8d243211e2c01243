"""The main text of pages whose parts are named as people name them, and what a page says of itself."""

import pytest

from fox.data.quarantine import BadRecord
from fox.data.web.extract import MANY_TAGS, MAX_DEPTH, Extract, extract

FOX = "The fox is a small animal that lives in the woods, hunts at night and is seldom seen. " * 4
MORE = "In spring the young ones leave the den for the first time and play in the grass. " * 4


def page(body: str, head: str = "", root: str = "") -> Extract:
    return extract(f"<!doctype html><html {root}><head>{head}</head><body>{body}</body></html>")


def article(inside: str = "") -> str:
    return f"<h1>Foxes</h1><p>{FOX}</p>{inside}<p>{MORE}</p>"


@pytest.mark.parametrize(
    "part",
    [
        "<nav><ul><li><a href=/>Elsewhere</a></ul></nav>",
        "<div role=navigation>Elsewhere</div>",
        "<footer><p>Elsewhere</p></footer>",
        "<div id=footer><p>Elsewhere</p></div>",
        "<div class='comments'><p>Elsewhere</p></div>",
        "<section class='CommentsSection'><p>Elsewhere</p></section>",
        "<div class='widget widget-2'><p>Elsewhere</p></div>",
        "<div id='sidebar1'><p>Elsewhere</p></div>",
        "<div class=side-bar><p>Elsewhere</p></div>",
        "<ul class='share-links'><li>Elsewhere</ul>",
        "<ul><li><a href=a>Elsewhere</a><li><a href=b>Elsewhere too</a></ul>",
        "<p hidden>Elsewhere</p>",
        "<div aria-hidden=true>Elsewhere</div>",
        "<script>var Elsewhere = 1</script><style>.Elsewhere {}</style><template>Elsewhere</template>",
    ],
)
def test_what_is_not_the_text_is_left_out(part):
    for body in (
        article() + part,
        part + article(),
        article(part),
        f"<main>{article(part)}</main>",
        f"<div>{article()}</div>{part}",
    ):
        text = page(body).text
        assert "Elsewhere" not in text, body
        assert FOX.strip() in text and MORE.strip() in text


@pytest.mark.parametrize(
    "part",
    [
        "<p>Here</p>",
        "<pre>Here</pre>",
        "<ul><li>Here is a point<li>Here is another</ul>",
        "<table><tr><td>Here</td><td>is a number</td></tr></table>",
        "<h2 id='social-life'>Here: social life</h2>",
        "<section id='menu-of-a-fox'><h2>The menu of a fox</h2><p>Here</p></section>",
        "<blockquote><p>Here</p></blockquote>",
        "<p>Here is <a href=x>a link</a> in a sentence of the text.</p>",
        "<div class='statistics headings'><p>Here</p></div>",
    ],
)  # fmt: skip
def test_what_is_the_text_is_kept(part):
    assert "Here" in page(article(part)).text


@pytest.mark.parametrize("name", ["sidebar", "has-sidebar", "comments", "widget", "menu", "footer", "page-with-ads"])
def test_a_wrapper_of_the_whole_text_is_kept_whatever_it_is_called(name):
    assert FOX.strip() in page(f"<div class='{name}'>{article()}</div>").text


def test_a_page_that_is_hidden_while_it_asks_about_cookies():
    text = page(
        f"<div aria-hidden=true>{article('<p aria-hidden=true>Elsewhere</p>')}</div><div class=cookies>Cookies?</div>"
    ).text
    assert FOX.strip() in text and "Cookies?" not in text


def test_what_a_text_is_about_is_no_name_of_its_part():
    assert (
        FOX.strip()
        in page(
            f"<main>{'<p>Short.</p>' * 99}<article class='post tag-social category-search'>{article()}</article></main>"
        ).text
    )


def test_more_comments_than_text():
    comments = "".join(f"<li class=comment><p>{number} Comment. {MORE}</p>" for number in range(12))
    text = page(f"<div class=post>{article()}</div><ol class=commentlist>{comments}</ol>").text
    assert FOX.strip() in text and "Comment." not in text


def test_a_row_of_teasers_is_left_out_and_linked_headings_in_the_text_are_not():
    teasers = "".join(f"<div><h3><a href={n}>Elsewhere {n}</a></h3><p>On 2 August</p></div>" for n in range(3))
    assert "Elsewhere" not in page(f"{article()}<div>{teasers}</div>").text
    sections = "".join(f"<h3><a href=#{n}>Here {n}</a></h3><p>{MORE}</p>" for n in range(3))
    assert "Here 2" in page(f"<div>{article(sections)}</div>").text
    posts = "".join(f"<div><h2><a href={n}>Here {n}</a></h2><p>{FOX}</p></div>" for n in range(3))
    assert "Here 2" in page(f"<div>{posts}</div>").text  # the page is a list of posts


def test_a_page_without_paragraphs():
    assert (
        page("<div><font>The fox is small.<br>It hunts at night.</font></div>").text
        == "The fox is small.\nIt hunts at night."
    )
    assert page("").text == page("<nav>Menu</nav>").text == extract("").text == ""


def test_a_little_running_text_does_not_tell_where_the_text_is():
    lines = "<br>".join(f"Line {number} of the text." for number in range(99))
    text = page(f"<div>{lines}</div><div><p>Here is a paragraph.</p></div>").text
    assert "Line 0" in text and "Line 98" in text


def test_text_in_lists_alone():
    points = "".join(f"<li>{number}. {FOX}" for number in range(3))
    text = page(f"<ul class=menu><li><a href=/>Home</a></ul><ul>{points}</ul>").text
    assert "2. The fox" in text and "Home" not in text


def test_preformatted_text_keeps_its_lines():
    assert "if fox:\n    hunt()" in page(article("<pre>if fox:\n    hunt()</pre>")).text


@pytest.mark.parametrize(
    ("head", "root", "expected"),
    [
        ("<title>Foxes | The Site</title>", "lang=en-GB", ("Foxes | The Site", "", "en-gb")),
        ("<title>Foxes | The Site</title><meta property='og:title' content=' Foxes '>", "", ("Foxes", "", "")),
        ("<meta property='article:published_time' content='2024-03-05T10:00:00+01:00'>", "", ("", "2024-03-05", "")),
        ("<meta name=date content=20240305>", "", ("", "2024-03-05", "")),
        ("<meta name=date content=yesterday><meta itemprop=datePublished content=2024-03-05>", "", ("", "2024-03-05", "")),
        ('<script type="application/ld+json">{"datePublished": "2024-03-05"}</script>', "", ("", "2024-03-05", "")),
        ("<meta name=date content=2024-13-05>", "lang='javascript:x'", ("", "", "")),
        ("<title>" + "x" * 5000 + "</title>", "lang=de", ("x" * 500, "", "de")),
    ],
)  # fmt: skip
def test_title_date_and_language_are_the_pages_own(head, root, expected):
    assert page(article(), head, root)[1:4] == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("<link rel=license href='https://creativecommons.org/licenses/by-sa/4.0/deed.de'>", "CC BY-SA 4.0"),
        ("<link rel=license href='//www.creativecommons.org/publicdomain/zero/1.0/'>", "CC0 1.0"),
        ("<link rel='copyright license' href=/terms>", "/terms"),
        ("<link rel=license href=/a><link rel=license href=/b>", ""),
        ("<link rel=stylesheet href=license>", ""),
    ],
)  # fmt: skip
def test_the_licence_is_the_one_that_the_page_links_as_its_own(head, expected):
    assert page(article(), head, "").license == expected


def test_pages_nested_too_deep_are_refused():
    deep = "<div>" * (MAX_DEPTH + 10)
    with pytest.raises(BadRecord, match="nested deeper"):
        extract(deep + "<br>" * MANY_TAGS)
    with pytest.raises(BadRecord, match="nested deeper"):
        extract("<div></b>" * (MAX_DEPTH + 10) + "<br>" * MANY_TAGS)
    assert extract("<p>fox</p>" * MANY_TAGS).text.startswith("fox")
