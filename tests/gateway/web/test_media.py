"""Accept headers: what is wanted, in which order; garbage is 400, what cannot be is 406."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.web.errors import Problem
from node.gateway.web.media import (
    Form,
    accepts,
    frame_forms,
    instance_forms,
    parse_accept,
    parse_media_type,
)

EXPLICIT = "1.2.840.10008.1.2.1"


def names(text):
    return [found.name for found in parse_accept(text)]


def test_ranges_by_weight_and_then_in_order():
    assert names("a/b;q=0.5, c/d, e/f;q=0, g/h;q=0.9") == ["c/d", "g/h", "a/b"]
    assert names("") == names("*") == ["*/*"]
    assert names('multipart/related; type="application/dicom, x"; q=1 , a/b') == [
        "multipart/related", "a/b",
    ]  # fmt: skip


def test_parameters_plain_and_quoted():
    found = parse_media_type('Multipart/Related; Type="application/dicom"; Boundary="a\\"b c"')
    assert found == ("multipart/related", {"type": "application/dicom", "boundary": 'a"b c'})


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("", [Form(EXPLICIT, True)]),
        ('multipart/related; type="application/dicom"', [Form(EXPLICIT, True)]),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', [Form("*", True)]),
        ("multipart/related; type=application/dicom; transfer-syntax=*", [Form("*", True)]),
        ("application/dicom; transfer-syntax=1.2.840.10008.1.2.5",
         [Form("1.2.840.10008.1.2.5", False)]),
        ("application/dicom; transfer-syntax=1.2.3, */*",
         [Form("unknown", False), Form(EXPLICIT, True)]),
    ],
)  # fmt: skip
def test_forms_of_instances(text, forms):
    assert instance_forms(parse_accept(text)) == forms


def test_forms_of_frames():
    assert frame_forms(parse_accept('multipart/related; type="image/jpeg"')) == [
        Form("*", True, "image/jpeg")
    ]
    assert frame_forms(parse_accept("application/octet-stream")) == [
        Form(EXPLICIT, False, "application/octet-stream")
    ]


@pytest.mark.parametrize(
    ("old", "current"),
    [
        ("image/dicom+jpeg", "image/jpeg"),
        ("image/dicom+jpeg-ls", "image/jls"),
        ("image/x-jls", "image/jls"),
        ("image/dicom+jp2", "image/jp2"),
        ("image/dicom+jpx", "image/jpx"),
        ("image/X-DICOM-RLE", "image/dicom-rle"),
    ],
)
def test_names_of_earlier_editions_are_understood(old, current):
    for accept in (old, f'multipart/related; type="{old}"'):
        (form,) = frame_forms(parse_accept(accept))
        assert (form.media, form.syntax) == (current, "*")


def test_nothing_that_fits_is_406():
    for refuse in (
        lambda: instance_forms(parse_accept("text/html")),
        lambda: frame_forms(parse_accept("text/html")),
        lambda: accepts(parse_accept("text/html"), "image/png"),
        lambda: accepts(parse_accept("image/png;q=0"), "image/png"),
    ):
        with pytest.raises(Problem) as refused:
            refuse()
        assert refused.value.status == 406


@given(st.text(max_size=80) | st.text(alphabet='ab/*;=,q."\\ 01', max_size=60))
def test_any_header_is_read_or_400(text):
    with suppress(Problem):
        ranges = parse_accept(text)
        assert all(0 < found.quality <= 1 for found in ranges)
