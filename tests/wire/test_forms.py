"""Forms: one shape is accepted, and what goes on is what was checked, whatever a body tries."""

import email
import email.policy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.faults import Fault
from tollway.wire import forms
from tollway.wire.forms import File, FormKind, edit_pieces, find_boundary, list_spans, read_fields, read_parts

B = b"xyz"
KINDS = {"n": FormKind.INTEGER, "temperature": FormKind.NUMBER, "stream": FormKind.BOOLEAN, "prompt": FormKind.TEXT}


def part(name: str, value: bytes, file: str | None = None, more: str = "") -> bytes:
    filename = "" if file is None else f'; filename="{file}"'
    return b'--%b\r\ncontent-disposition: form-data; name="%b"%b\r\n%b\r\n%b\r\n' % (
        B,
        name.encode(),
        filename.encode(),
        more.encode(),
        value,
    )


def form(*parts: bytes, end: bytes = b"--xyz--\r\n") -> bytes:
    return b"".join(parts) + end


def read(body: bytes) -> dict[str, Any]:
    return read_fields(body, read_parts(body, B), KINDS)[0]


def test_fields_are_read_as_their_kinds_and_files_keep_their_bytes() -> None:
    body = form(
        part("n", b"2"),
        part("temperature", b"0.5"),
        part("stream", b"true"),
        part("prompt", b"12"),
        part("seed", b"-7"),
        part("words[]", b"a"),
        part("words[]", b"b"),
        part("chunking[type]", b"auto"),
        part("file", b"\r\n--xy\0", "a.wav", "content-type: audio/wav\r\n"),
        part("empty", b""),
    )
    fields = read(body)
    file = fields.pop("file")
    assert isinstance(file, File) and file.read(0, 99) == b"\r\n--xy\0" and file.read(2, 3) == b"--x"
    assert fields == {
        "n": 2,
        "temperature": 0.5,
        "stream": True,
        "prompt": "12",
        "seed": -7,
        "words": ["a", "b"],
        "chunking": {"type": "auto"},
        "empty": "",
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--xyz--\r\n",
        b"x" + form(part("a", b"1")),
        b"\r\n" + form(part("a", b"1")),
        form(part("a", b"1"), end=b"--xyz--\r\nx"),
        form(part("a", b"1"), end=b"--xyz"),
        form(part("a", b"1"), end=b""),
        form(part("a", b"1"), end=b"--xyz \r\n--xyz--"),
        form(part("a", b"1")).replace(b"\r\n", b"\n"),
        b'--xyz\r\ncontent-disposition: form-data; name="a"\r\n' + b"x: " + b"y" * 4000 + form(end=b"\r\n\r\n1\r\n--xyz--"),
        form(part("a", b"1", more="content-transfer-encoding: base64\r\n")),
        form(part("a", b"1", more='content-disposition: form-data; name="b"\r\n')),
        form(part("a", b"1", more=" folded\r\n")),
        form(part("a", b"1", more="content-type: text/plain\r\ncontent-type: text/plain\r\n")),
        form(part("a", b"1")).replace(b"form-data", b"attachment"),
        form(part("a", b"1")).replace(b'"a"', b"a"),
        form(part('a"; filename="x', b"1")).replace(b"\r\n1", b'; name="b"\r\n1'),
        form(part("a\\", b"1")),
        form(part("a b", b"1")),
        form(part("a[b][c]", b"1")),
        form(part("\xff", b"1")).replace("\xff".encode(), b"\xff"),
        form(*[part(f"a{n}", b"1") for n in range(forms.PARTS_MAX + 1)]),
    ],
)
def test_122_form_in_any_other_shape_is_refused(body: bytes) -> None:
    with pytest.raises(Fault) as caught:
        read(body)
    assert caught.value.kind.code == "invalid_form"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (form(part("a", b"1"), part("a", b"1")), "duplicate_key", "a"),
        (form(part("a", b"1"), part("a[]", b"1")), "duplicate_key", "a"),
        (form(part("a[x]", b"1"), part("a[x]", b"1")), "duplicate_key", "a"),
        (form(part("a[x]", b"1"), part("a[]", b"1")), "duplicate_key", "a"),
        (form(part("a", b"\xff")), "invalid_value", "a"),
        (form(part("a", b"x" * (forms.TEXT_BYTES_MAX + 1))), "media_too_large", "a"),
    ],
)
def test_field_that_stands_twice_or_is_no_text_is_refused_by_its_name(body: bytes, code: str, param: str) -> None:
    with pytest.raises(Fault) as caught:
        read(body)
    assert (caught.value.kind.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=xyz", b"xyz"),
        (b'Multipart/Form-Data; charset=utf-8; boundary="x:y"', b"x:y"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b"multipart/form-data; boundary=a; boundary=b", None),
        (b"multipart/form-data; boundary=" + b"a" * 71, None),
        (b'multipart/form-data; boundary="a\\"b"', None),
        (b'multipart/form-data; boundary="a b"', None),
        (b"multipart/mixed; boundary=a", None),
        (b"multipart/form-datax; boundary=a", None),
        (b"application/json", None),
        (b"", None),
    ],
)
def test_boundary_is_what_the_content_type_names_once(content_type: bytes, boundary: bytes | None) -> None:
    assert find_boundary(content_type) == boundary


names = st.sampled_from(["model", "file", "a", "b[]", "c[k]"])


@given(
    st.lists(st.tuples(names, st.binary(max_size=40), st.booleans()), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 1 << 30)
)
def test_122_engine_reads_what_was_checked_without_what_was_dropped_and_with_our_fields(
    asked: list[tuple[str, bytes, bool]], size: int, seed: int
) -> None:
    body = form(*[part(name, value, "f" if is_file else None) for name, value, is_file in asked])
    try:
        parts = read_parts(body, B)
        _, owners = read_fields(body, parts, {})
    except Fault:
        return
    cuts = sorted(random.Random(seed).sample(range(len(body)), min(size, len(body))))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    edited = b"".join(edit_pieces(pieces, owners, list_spans(parts), {"model": b'"own"', "n": b"2"}, {"a"}, b"ours"))
    message = email.message_from_bytes(b"content-type: multipart/form-data; boundary=ours\r\n\r\n" + edited, policy=email.policy.HTTP)
    assert not message.defects
    read_again = [
        (each.get_param("name", header="content-disposition"), read_content(edited, at)) for at, each in enumerate(message.iter_parts())
    ]
    kept = [(name, value) for name, value, _ in asked if name not in ("model", "a")]
    assert read_again == [("model", b"own"), ("n", b"2"), *kept]


def read_content(body: bytes, at: int) -> bytes:
    """The content of a part, by splitting at the boundary alone."""
    return body.split(b"--ours")[at + 1].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
