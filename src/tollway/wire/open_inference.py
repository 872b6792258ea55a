"""Messages of the Open Inference Protocol (KServe's second) by gRPC, read as far as bounds and bills need it and relayed as they are.

Source: grpc_predict_v2.proto of the protocol, and Triton's grpc_service.proto for streams; `open_inference.proto` beside this file has
both. A request's tensors are compared with their shapes by length alone, so that no element is looked at but lengths of texts. Only the
name and the version of the model are written anew.
"""

from collections.abc import Mapping
from math import prod
from typing import Final

import msgspec

from tollway.wire import protobuf
from tollway.wire.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, MessageInvalid, encode_bytes, read_fields, read_text

TENSORS_MAX: Final = 256
DIMENSIONS_MAX: Final = 16
PARAMETERS_MAX: Final = 64
TENSOR_FIELDS_MAX: Final = 96
"""Fields of one tensor or requested output: its name, datatype, contents, sizes one by one, and parameters."""
ENTRY_FIELDS_MAX: Final = 16
"""Fields of one entry of a map, which has a key and a value."""
NAME_BYTES_MAX: Final = 1_024
ELEMENTS_MAX: Final = 1 << 31
TEXTS_MAX: Final = 65_536
"""Texts in all tensors of a request, each of which states its length; also elements that are not packed."""
COUNTS_MAX: Final = 4_096
"""Elements of a tensor of counts of tokens, one for each prompt."""

_SIZES: Final[Mapping[str, int]] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip
_CONTINUED: Final = bytes(range(0x80, 0x100))
"""Bytes that do not end a varint."""
_FIXED: Final = {6: 4, 7: 8}
"""Fields of InferTensorContents whose elements have one size: fp32_contents, fp64_contents."""
_TEXTS: Final = 8
"""Its field of texts."""


class InferRequest(msgspec.Struct, frozen=True):
    """A ModelInferRequest. `model`: with its version as a part of the name where one is stated, as the REST twin has it. `parameters`:
    names of those of the request and of all tensors. `spans`: where `model_name` and `model_version` stand."""

    model: str
    id: str
    parameters: frozenset[str]
    spans: tuple[tuple[int, int], ...]


class InferAnswer(msgspec.Struct, frozen=True):
    """A ModelInferResponse. `input_tokens`, `output_tokens`: as it counts them, None where it does not. `is_final`: the engine says that no
    other follows. `spans`: where `model_name` stands."""

    input_tokens: int | None
    output_tokens: int | None
    is_final: bool
    spans: tuple[tuple[int, int], ...]


def split_model(model: str) -> tuple[str, str]:
    """Return the name and the version of a model whose name may end in `/versions/` and a version."""
    name, separator, version = model.rpartition("/versions/")
    return (name, version) if separator and version and "/" not in version else (model, "")


def join_model(name: str, version: str) -> str:
    """Return the name by which a version of a model is known here."""
    return f"{name}/versions/{version}" if version else name


def read_request(message: bytes) -> InferRequest:
    """Read a ModelInferRequest. Raises MessageInvalid, with a text that may be shown, for one that is not, has tensors whose data do not
    fit their shapes, or more of anything than is taken."""
    name = version = id = ""
    parameters: list[str] = []
    spans: list[tuple[int, int]] = []
    inputs: list[_Tensor] = []
    outputs = places = 0
    raw: list[Field] = []
    for field in read_fields(message):
        if field.number in (1, 2):
            spans.append((field.begin, field.end))
            if field.number == 1:
                name = read_text(message, field)
            else:
                version = read_text(message, field)
        elif field.number == 3:
            id = read_text(message, field)
        elif field.number == 4:
            parameters.append(_read_name(message, field))
        elif field.number == 5:
            inputs.append(_read_tensor(message, field, parameters, TEXTS_MAX - places))
            places += len(inputs[-1].places)
        elif field.number == 6:
            outputs += 1
            fields = read_fields(message, *_inside(field), fields_max=TENSOR_FIELDS_MAX)
            parameters += [_read_name(message, each) for each in fields if each.number == 2]
        elif field.number == 7:
            _inside(field)
            raw.append(field)
        if len(inputs) > TENSORS_MAX or outputs > TENSORS_MAX or len(parameters) > PARAMETERS_MAX:
            raise MessageInvalid("too many tensors or parameters")
    if not inputs:
        raise MessageInvalid("a request needs at least one input")
    if raw and len(raw) != len(inputs):
        raise MessageInvalid("raw_input_contents must have one entry for each input")
    texts_left = TEXTS_MAX
    for index, tensor in enumerate(inputs):
        texts_left -= _check_data(message, tensor, raw[index] if raw else None, texts_left)
    if len(id.encode()) > NAME_BYTES_MAX:
        raise MessageInvalid("the id is too long")
    return InferRequest(join_model(name, version), id, frozenset(parameters), tuple(spans))


def rename(message: bytes, spans: tuple[tuple[int, int], ...], name: str, version: str) -> bytes:
    """Return a request or an answer with another name and version of its model, verbatim in all else."""
    parts = [encode_bytes(1, name.encode()) + encode_bytes(2, version.encode())]
    at = 0
    for begin, end in spans:
        parts.append(message[at:begin])
        at = end
    parts.append(message[at:])
    return b"".join(parts)


def read_answer(message: bytes, input_name: str, output_name: str, count_max: int) -> InferAnswer:
    """Read a ModelInferResponse. `input_name`, `output_name`: of the tensors, or parameters, that count tokens, 0 to `count_max` each; what
    else they say is no count. Raises MessageInvalid."""
    counted: dict[str, int] = {}
    is_final = False
    spans: list[tuple[int, int]] = []
    names: list[tuple[str, _Tensor]] = []
    raw: list[Field] = []
    for field in read_fields(message):
        if field.number == 1:
            spans.append((field.begin, field.end))
        elif field.number == 4:
            name, value = _read_parameter(message, field)
            if name == "triton_final_response":
                is_final = value == 1
            elif name in (input_name, output_name) and value is not None:
                counted[name] = value
        elif field.number == 5:
            tensor = _read_tensor(message, field, [], TEXTS_MAX)
            names.append((tensor.name, tensor))
        elif field.number == 6:
            _inside(field)
            raw.append(field)
    for index, (name, tensor) in enumerate(names):
        if name in (input_name, output_name):
            count = _sum_elements(message, tensor, raw[index] if index < len(raw) else None, count_max)
            if count is not None:
                counted[name] = count
    kept = {name: count for name, count in counted.items() if 0 <= count <= count_max}
    return InferAnswer(kept.get(input_name), kept.get(output_name), is_final, tuple(spans))


def open_stream_answer(message: bytes) -> tuple[str, bytes]:
    """Return the error message and the answer of a ModelStreamInferResponse. Raises MessageInvalid."""
    error, answer = "", b""
    for field in read_fields(message):
        if field.number == 1:
            error = read_text(message, field)
        elif field.number == 2:
            start, end = _inside(field)
            answer = message[start:end]
    return error, answer


def wrap_stream_answer(answer: bytes) -> bytes:
    """Return an answer as one of a stream."""
    return protobuf.varint(2 << 3 | BYTES) + protobuf.varint(len(answer)) + answer


class _Tensor(msgspec.Struct, frozen=True):
    """A tensor: `elements` by its shape, and how many its contents have, None without any; `places`: of its contents."""

    name: str
    datatype: str
    elements: int
    contents: int | None
    places: tuple[Field, ...]


def _inside(field: Field) -> tuple[int, int]:
    """Return where the message or the bytes of a field stand."""
    if field.kind != BYTES:
        raise MessageInvalid("a field of another type")
    return field.start, field.end


def _read_name(message: bytes, field: Field) -> str:
    """Return the key of an entry of a map. Raises MessageInvalid for one with two: readers take the last, and none may pass unseen."""
    names = [read_text(message, each) for each in read_fields(message, *_inside(field), fields_max=ENTRY_FIELDS_MAX) if each.number == 1]
    if len(names) > 1:
        raise MessageInvalid("a parameter has two names")
    return names[0] if names else ""


def _read_parameter(message: bytes, field: Field) -> tuple[str, int | None]:
    """Return a parameter: its name, and its value if that is a whole number or a boolean."""
    name, value = "", None
    for each in read_fields(message, *_inside(field), fields_max=ENTRY_FIELDS_MAX):
        if each.number == 1:
            name = read_text(message, each)
        elif each.number == 2:
            for choice in read_fields(message, *_inside(each), fields_max=ENTRY_FIELDS_MAX):
                value = protobuf.to_signed(choice.value) if choice.kind == VARINT and choice.number in (1, 2, 5) else None
    return name, value


def _read_tensor(message: bytes, field: Field, parameters: list[str], places_max: int) -> _Tensor:
    """Return a tensor; names of its parameters are added to `parameters`. `places_max`: fields of its contents. Contents that come twice,
    which readers merge, are refused. Raises MessageInvalid."""
    name = datatype = ""
    shape: list[int] = []
    contents: int | None = None
    places: list[Field] = []
    for each in read_fields(message, *_inside(field), fields_max=TENSOR_FIELDS_MAX):
        if each.number == 1:
            name = read_text(message, each)
        elif each.number == 2:
            datatype = read_text(message, each)
        elif each.number == 3:
            shape += map(protobuf.to_signed, protobuf.read_varints(message, each, DIMENSIONS_MAX))
            if len(shape) > DIMENSIONS_MAX:
                raise MessageInvalid("a tensor has too many dimensions")
        elif each.number == 4:
            parameters.append(_read_name(message, each))
        elif each.number == 5:
            if contents is not None:
                raise MessageInvalid("a tensor has its contents twice")
            contents = 0
            for place in read_fields(message, *_inside(each), fields_max=places_max):
                contents += _count_contents(message, place)
                places.append(place)
    if len(name) > NAME_BYTES_MAX or any(size < 0 for size in shape) or prod(shape) > ELEMENTS_MAX:
        raise MessageInvalid("a tensor has a name or a shape that is none")
    return _Tensor(name, datatype, prod(shape), contents, tuple(places))


def _count_contents(message: bytes, field: Field) -> int:
    """Return how many elements a field of InferTensorContents holds, packed or one by one."""
    if field.number == _TEXTS or field.kind in (VARINT, FIXED32, FIXED64):
        return 1
    size = _FIXED.get(field.number)
    if size is not None:
        return (field.end - field.start) // size
    return len(message[field.start : field.end].translate(None, _CONTINUED))


def _check_data(message: bytes, tensor: _Tensor, raw: Field | None, texts_max: int) -> int:
    """Return how many texts in raw contents a tensor has. Raise MessageInvalid unless it has as much data as its shape says."""
    texts = 0
    size = _SIZES.get(tensor.datatype)
    if size is None:
        raise MessageInvalid("a tensor has a datatype that there is not")
    if raw is not None and tensor.contents is not None:
        raise MessageInvalid("a tensor has its data twice, in contents and in raw_input_contents")
    if raw is None:
        fits = tensor.contents == tensor.elements or (tensor.contents is None and tensor.elements == 0)
    elif size:
        fits = raw.end - raw.start == tensor.elements * size
    else:
        texts = _count_texts(message, raw, texts_max)
        fits = texts == tensor.elements
    if not fits:
        raise MessageInvalid("the data of a tensor do not fit its shape")
    return texts


def _count_texts(message: bytes, raw: Field, texts_max: int) -> int:
    """Return how many texts raw contents hold, each behind its length in four bytes, little-endian."""
    at, count = raw.start, 0
    while at < raw.end:
        at += 4 + int.from_bytes(message[at : at + 4], "little")
        count += 1
        if at > raw.end or count > texts_max:
            raise MessageInvalid("a tensor of texts is cut short, or has too many")
    return count


def _sum_elements(message: bytes, tensor: _Tensor, raw: Field | None, count_max: int) -> int | None:
    """Return the sum of a tensor of whole numbers of 0 to `count_max`; None if it has others, or too many."""
    if tensor.elements > COUNTS_MAX:
        return None
    if raw is None:
        values = [
            protobuf.to_signed(value)
            for field in tensor.places
            if field.number in (2, 3, 4, 5)
            for value in protobuf.read_varints(message, field, COUNTS_MAX)
        ]
        return _sum_counts(values, count_max)
    size = _SIZES.get(tensor.datatype, 0)
    if not size or "INT" not in tensor.datatype or raw.end - raw.start != tensor.elements * size or not tensor.elements:
        return None
    data, signed = message[raw.start : raw.end], tensor.datatype.startswith("INT")
    return _sum_counts([int.from_bytes(data[at : at + size], "little", signed=signed) for at in range(0, len(data), size)], count_max)


def _sum_counts(counts: list[int], count_max: int) -> int | None:
    """Return the sum of counts; None without any, and if one is none."""
    return sum(counts) if counts and all(0 <= each <= count_max for each in counts) else None
