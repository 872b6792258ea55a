"""Messages of the Open Inference Protocol: what is read of them is what the engine's own library reads, within bounds."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError

from tollway.simulator.open_inference_grpc import load_messages
from tollway.wire import open_inference
from tollway.wire.protobuf import BYTES, MessageInvalid, encode_bytes, varint

MESSAGE = load_messages()
SHARED_MEMORY = b"shared_memory_region"


def field(number: int, value: bytes) -> bytes:
    """A field of bytes, also of none."""
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def tensor(*more: bytes) -> bytes:
    """An input of one element, with further fields."""
    contents = field(5, encode_bytes(3, b"\x01"))
    return encode_bytes(1, b"x") + encode_bytes(2, b"INT64") + encode_bytes(3, b"\x01") + contents + b"".join(more)


def request(*more: bytes, of_tensor: tuple[bytes, ...] = ()) -> bytes:
    return encode_bytes(1, b"m") + encode_bytes(5, tensor(*of_tensor)) + b"".join(more)


TWICE = encode_bytes(1, b"harmless") + encode_bytes(1, SHARED_MEMORY)


@pytest.mark.parametrize(
    "message",
    [
        request(encode_bytes(4, TWICE)),
        request(of_tensor=(encode_bytes(4, TWICE),)),
        request(encode_bytes(6, encode_bytes(1, b"y") + encode_bytes(2, TWICE))),
    ],
)
def test_parameter_with_two_names_is_refused_because_an_engine_takes_the_last(message: bytes) -> None:
    understood = MESSAGE("ModelInferRequest").FromString(message)
    maps = [understood.parameters, *(each.parameters for each in (*understood.inputs, *understood.outputs))]
    assert SHARED_MEMORY.decode() in {name for each in maps for name in each}
    with pytest.raises(MessageInvalid):
        open_inference.read_request(message)


def test_each_part_of_a_tensor_is_looked_at_once_and_bounded_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    count = open_inference._count_contents
    monkeypatch.setattr(open_inference, "_count_contents", lambda message, place: looked.append(place) or count(message, place))
    for message in (
        request(of_tensor=(field(5, b""),)),
        request(of_tensor=(encode_bytes(5, encode_bytes(3, b"\x01")),) * 200),
        encode_bytes(5, encode_bytes(5, field(8, b"") * 40_000)) * 2,
        encode_bytes(5, encode_bytes(5, field(8, b"") * 70_000)),
        encode_bytes(5, field(9, b"") * 300),
        encode_bytes(6, field(9, b"") * 300),
        encode_bytes(4, field(9, b"") * 20),
    ):
        with pytest.raises(MessageInvalid):
            open_inference.read_request(message)
    assert len(looked) <= 2 + 2 * open_inference.TEXTS_MAX


@pytest.mark.parametrize("count", [-500, 2**63 - 1])
def test_counts_of_tokens_that_are_none_count_for_nothing(count: int) -> None:
    answer = MESSAGE("ModelInferResponse")(model_name="m")
    answer.parameters["in"].int64_param = count
    answer.outputs.add(name="out", datatype="INT64", shape=[2]).contents.int64_contents.extend([600, count])
    raw = MESSAGE("ModelInferResponse")(model_name="m", raw_output_contents=[count.to_bytes(8, "little", signed=True)])
    raw.outputs.add(name="out", datatype="INT64", shape=[1])
    for each in (answer, raw):
        read = open_inference.read_answer(each.SerializeToString(), "in", "out", 1_000)
        assert (read.input_tokens, read.output_tokens) == (None, None)


def test_request_that_is_taken_has_no_other_names_to_the_library_of_engines() -> None:
    """Requests put together of any two fields: whatever is not refused names the same model to both, and no other parameters."""
    parts = [
        encode_bytes(1, b"n"),
        encode_bytes(2, b"3"),
        encode_bytes(4, encode_bytes(1, b"p") + field(2, b"\x08\x01")),
        encode_bytes(4, TWICE),
        encode_bytes(4, field(2, b"")),
        encode_bytes(4, encode_bytes(3, b"?") + encode_bytes(1, b"q")),
        b"\x8a\x00\x01z",
        b"\x08\x01",
    ]
    taken = 0
    for first in parts:
        for second in parts:
            message = request(first, second)
            try:
                read = open_inference.read_request(message)
            except MessageInvalid:
                continue
            try:
                understood = MESSAGE("ModelInferRequest").FromString(message)
            except DecodeError:
                continue
            taken += 1
            assert read.parameters >= frozenset(understood.parameters)  # entries with unknown fields are none to this library
            assert read.model == open_inference.join_model(understood.model_name, understood.model_version)
    assert taken > 10
