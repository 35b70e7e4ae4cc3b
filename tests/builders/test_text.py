"""What is left of web text, against Python's html module and regular expressions."""

import html
import re

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.builders.text import add_functions


@pytest.fixture(scope="module")
def clean():
    connection = duckdb.connect()
    add_functions(connection)
    return lambda text: connection.execute("SELECT one_line($1), many_lines($1)", [text]).fetchall()[0]


@pytest.mark.parametrize(
    ("text", "one", "many"),
    [
        ("  a   b ", "a b", "a b"),
        ("Ben &amp; Jerry&#39;s &lt;3", "Ben & Jerry's <3", "Ben & Jerry's <3"),
        ("<b>One</b><br />two <a href='x'>three</a>", "One two three", "One two three"),
        ("I <3 it, 2 < 3 and 4 > 1", "I <3 it, 2 < 3 and 4 > 1", "I <3 it, 2 < 3 and 4 > 1"),
        ("one \r\n\r\n\n  two\n", "one two", "one\ntwo"),
        ("a\x07b \x00\x1bc", "a b c", "a b c"),
        ("a b\nc", "a b c", "a b\nc"),
        ("a\tb", "a b", "a b"),
        ("a\n", "a", "a"),
        (" a", "a", "a"),
        ("a  b", "a b", "a b"),
        ("\u3000a", "a", "\u3000a"),
        ("a\u00a0", "a", "a\u00a0"),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_known_texts(clean, text, one, many):
    assert clean(text) == (one, many)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab1 &;<>/#\n\té日"), max_size=20))
def test_any_text_is_what_python_makes_of_it(clean, text):
    bare = re.sub(r"</?[a-zA-Z!][^<>]*>", " ", html.unescape(text))
    one, many = clean(text)
    assert one == re.sub(r"[\s]+", " ", bare).strip(" ")
    assert many.split("\n") == [
        line for line in (re.sub(r"\s+", " ", line).strip() for line in bare.strip().split("\n")) if line
    ] or (many == "" and not bare.strip())
