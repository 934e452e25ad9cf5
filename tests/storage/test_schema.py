import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import schema
from storage.errors import CorruptRecord

PARTS = st.lists(st.binary(max_size=6) | st.text("\x00\x01\x02\xff", max_size=6).map(
    lambda text: text.encode("latin-1")), max_size=4).map(tuple)  # fmt: skip
STRINGS = st.lists(st.binary(max_size=40), max_size=12)


def test_every_table_has_a_letter_of_its_own():
    names = "PAYLOAD BLOCK HEADER_HEIGHT RECEIPTS CERTIFICATE HEAD TRANSACTION WAL STATE"
    names += " STATE_NODE STATE_ROOT INDEX META"
    prefixes = [getattr(schema, name) for name in names.split()]
    assert len(set(prefixes)) == len(prefixes)
    assert all(len(prefix) == 1 and prefix.isalpha() for prefix in prefixes)


@given(PARTS, PARTS)
def test_byte_order_of_parts_is_the_order_of_tuples(left, right):
    encoded_left, encoded_right = schema.encode_parts(left), schema.encode_parts(right)
    assert (encoded_left < encoded_right) == (left < right)
    assert (encoded_left == encoded_right) == (left == right)


@given(PARTS, PARTS)
def test_an_encoding_begins_with_another_only_where_the_tuple_does(whole, prefix):
    begins = schema.encode_parts(whole).startswith(schema.encode_parts(prefix))
    assert begins == (whole[: len(prefix)] == prefix)


@given(PARTS)
def test_parts_come_back(parts):
    assert schema.decode_parts(schema.encode_parts(parts)) == parts


@given(st.binary(max_size=30) | st.text("\x00\x01\x02", max_size=9).map(str.encode))
def test_only_encoded_parts_decode(data):
    try:
        parts = schema.decode_parts(data)
    except ValueError:
        return
    assert schema.encode_parts(parts) == data


def test_the_bytes_of_parts():
    assert (
        schema.encode_parts([b"CT", b"\x00\x01\x02", b""]) == b"CT\x00\x01\x01\x01\x02\x02\x00\x00"
    )


@given(st.binary(min_size=1, max_size=5).filter(lambda p: p.strip(b"\xff")), st.binary(max_size=5))
def test_a_prefix_scan_covers_exactly_what_begins_with_the_prefix(prefix, other):
    stop = schema.after_prefix(prefix)
    assert prefix <= prefix + other < stop
    assert (prefix <= other < stop) == other.startswith(prefix)


@given(STRINGS)
def test_strings_come_back_together_and_one_by_one(strings):
    row = schema.encode_strings(strings)
    assert schema.decode_strings(row, "a row") == strings
    for position, string in enumerate(strings):
        assert schema.decode_string(row, position, "a row") == string
    assert schema.decode_string(row, len(strings), "a row") is None
    assert schema.decode_string(row, -1, "a row") is None


@given(st.binary(max_size=60))
def test_strings_of_other_bytes_are_corrupt(data):
    try:
        strings = schema.decode_strings(data, "a row")
    except CorruptRecord:
        return
    assert schema.encode_strings(strings) == data


@given(STRINGS, st.data())
def test_truncated_and_longer_strings_are_corrupt(strings, data):
    row = schema.encode_strings(strings)
    cut = data.draw(st.integers(0, len(row) - 1))
    for damaged in (row[:cut], row + b"x"):
        with pytest.raises(CorruptRecord):
            schema.decode_strings(damaged, "a row")
        with pytest.raises(CorruptRecord):
            schema.decode_string(damaged, 0, "a row")


def test_a_count_of_four_thousand_million_allocates_nothing():
    with pytest.raises(CorruptRecord, match="holds a row that cannot be read"):
        schema.decode_strings(b"\xff\xff\xff\xff" + bytes(100), "a row")


@given(st.integers(0, schema.HEIGHT_MAX), st.integers(0, schema.HEIGHT_MAX))
def test_byte_order_of_heights_is_numeric(left, right):
    assert (schema.height_bytes(left) < schema.height_bytes(right)) == (left < right)
    assert schema.read_height(schema.height_bytes(left), "a row") == left


@pytest.mark.parametrize("height", [-1, schema.HEIGHT_MAX + 1])
def test_impossible_heights_are_refused(height):
    with pytest.raises(ValueError, match="height"):
        schema.height_bytes(height)
    with pytest.raises(ValueError, match="height"):
        schema.place_bytes(height, 0)
