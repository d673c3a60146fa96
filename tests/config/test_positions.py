"""Every key and value of a TOML document is found where it is written."""

import math
from datetime import date, datetime, time

import tomli
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from safe_framework.config.toml_positions import Span, key_positions


def paths(value, at=()):
    """Every path into a parsed document, with what is there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        yield (*at, key), item
        if isinstance(item, (dict, list)):
            yield from paths(item, (*at, key))


def written(text, span):
    """What a span covers."""
    return text.split("\n")[span.line - 1][span.column - 1 :][: span.width]


def quoted(text):
    """A basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def literal(text, style):
    """A string in one of TOML's four ways, where its letters allow that one."""
    if style == 1 and "'" not in text and text.isprintable():
        return f"'{text}'"
    if style == 2:
        return f'""{quoted(text)}""'
    if style == 3 and "'" not in text and text.isprintable():
        return f"'''\n{text}'''"
    return quoted(text)


@st.composite
def values(draw, depth=2):
    """A value as it may be written, with blanks and comments where TOML allows them."""
    kinds = 8 if depth else 6
    kind = draw(st.integers(0, kinds - 1))
    if kind == 0:
        return str(draw(st.integers(-(2**60), 2**60)))
    if kind == 1:
        return draw(st.sampled_from(["true", "false", "inf", "-nan", "0xf", "1_000"]))
    if kind == 2:
        return repr(draw(st.floats(allow_nan=False, allow_infinity=False)))
    if kind == 3:
        moment = draw(st.dates() | st.datetimes() | st.times())
        space = draw(st.sampled_from(["T", " "]))
        return moment.isoformat(space) if isinstance(moment, datetime) else moment.isoformat()
    if kind < 6:
        return literal(draw(TEXT), draw(st.integers(0, 3)))
    if kind == 6:
        items = draw(st.lists(values(depth=depth - 1), max_size=3))
        blank = draw(st.sampled_from(["", " ", "\n  ", " # [ a, ]\n"]))
        comma = draw(st.sampled_from(["", ","])) if items else ""
        return "[" + blank + f",{blank}".join(items) + comma + blank + "]"
    pairs = draw(st.lists(pair(depth - 1), max_size=3))
    return "{ " + ", ".join(pairs) + " }"


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x7f"), max_size=6)
BARE = st.text("abcXYZ019-_", min_size=1, max_size=3)
KEY = BARE | TEXT.map(quoted) | BARE.map(lambda word: f"'{word}'")
DOTTED = st.lists(KEY, min_size=1, max_size=3).map(" . ".join) | KEY


@st.composite
def pair(draw, depth=2):
    """A key and its value, as written."""
    return f"{draw(DOTTED)} = {draw(values(depth=depth))}"


HEADER = DOTTED.map("[ {} ]".format) | DOTTED.map("[[{}]]".format)
COMMENT = TEXT.filter(str.isprintable).map("# {}".format)


@st.composite
def documents(draw):
    """TOML that tomli accepts: lines that would redefine something are left out."""
    text = ""
    for line in draw(st.lists(pair() | HEADER | COMMENT | st.just(""), max_size=10)):
        longer = f"{text}{line}\n"
        try:
            tomli.loads(longer)
        except tomli.TOMLDecodeError:
            continue
        text = longer
    return text


@settings(deadline=None)
@given(documents())
def test_every_path_has_a_position_and_no_other(text):
    """The scanner finds exactly the keys and items that tomli reads."""
    assert set(key_positions(text)) == {path for path, _ in paths(tomli.loads(text))}


@settings(deadline=None)
@given(documents())
def test_a_key_is_written_where_it_was_found(text):
    """What a key's span covers reads as that key."""
    for path, position in key_positions(text).items():
        if isinstance(path[-1], str):
            assert list(tomli.loads(f"{written(text, position.key)} = 0")) == [path[-1]]


@settings(deadline=None)
@given(documents())
def test_a_scalar_is_written_where_it_was_found(text):
    """What a scalar's span covers reads as that scalar, if it ends on its line."""
    positions = key_positions(text)
    for path, value in paths(tomli.loads(text)):
        shown = written(text, positions[path].value)
        if isinstance(value, (str, int, float, date, time)) and not shown.startswith("'''"):
            read = tomli.loads(f"x = {shown}")["x"]
            assert read == value or (math.isnan(read) and math.isnan(value))


def test_the_strategy_writes_every_kind_of_document():
    """Generated documents hold what recipes hold: headers, arrays of tables, inline tables."""
    quick = settings(phases=[Phase.generate], max_examples=2000, database=None)
    for sought in ("[[", "[ ", "{ ", '"""', "'''", " . ", "# "):
        assert sought in find(documents(), lambda text, part=sought: part in text, settings=quick)


def test_windows_lines_are_lines():
    """Carriage returns shift no position."""
    assert key_positions("a = 1\r\nb = 2\r\n")["b",].value == Span(2, 5, 1)


def test_a_table_inside_an_array_of_tables_belongs_to_its_last_item():
    """``[a.b]`` after the second ``[[a]]`` is in that one."""
    positions = key_positions("[[a]]\nx = 1\n[[a]]\n[a.b]\ny = 2\n")
    assert positions["a", 1, "b", "y"].key == Span(5, 1, 1)
    assert positions["a",].key == Span(1, 3, 1)


def test_a_header_is_preferred_to_a_mention():
    """A table is where its own header is, even if a table inside it came first."""
    assert key_positions("[a.b]\n[a]\n")["a",].key == Span(2, 2, 1)


def test_a_value_of_several_lines_is_pointed_at_on_its_first():
    """A span never leaves its line."""
    assert key_positions("a = [\n  1,\n]\n")["a",].value == Span(1, 5, 1)
