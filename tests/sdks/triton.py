"""Triton's client by gRPC against a gateway: `triton.py TARGET KEY` prints a row for each thing that such a program does."""

import json
import queue
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy
import tritonclient.grpc as triton


def list_rows(target: str, key: str) -> list[Callable[[], None]]:
    """Return the things to do."""
    headers = {"authorization": f"Bearer {key}"}

    def list_inputs(text: str) -> list[Any]:
        values = {"text_input": ("BYTES", [text.encode()]), "max_tokens": ("INT32", [5])}
        values |= {name: ("BOOL", [True]) for name in ("return_num_input_tokens", "return_num_output_tokens")}
        inputs = []
        for name, (kind, value) in values.items():
            inputs.append(triton.InferInput(name, [1], kind))
            inputs[-1].set_data_from_numpy(numpy.array(value, {"BYTES": numpy.object_, "INT32": numpy.int32, "BOOL": bool}[kind]))
        return inputs

    def infer() -> None:
        with triton.InferenceServerClient(target) as client:
            result = client.infer("m", list_inputs("a toll road"), headers=headers, request_id="7")
        assert result.get_response().model_name == "m" and result.get_response().id == "7"
        assert result.as_numpy("num_output_tokens")[0] > 0 and b"toll" in result.as_numpy("text_output")[0]

    def stream() -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with triton.InferenceServerClient(target) as client:
            client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
            client.async_stream_infer("m", list_inputs("a toll road"), enable_empty_final_response=True)
            while True:
                result, error = answers.get(timeout=20)
                assert error is None, error
                if result.get_response().parameters["triton_final_response"].bool_param:
                    break
            client.stop_stream()

    def errors() -> None:
        with triton.InferenceServerClient(target) as client:
            for model, sent, status in (("m", {}, "UNAUTHENTICATED"), ("none", headers, "NOT_FOUND")):
                try:
                    client.infer(model, list_inputs("x"), headers=sent)
                except triton.InferenceServerException as error:
                    assert status in str(error.status()), error
                else:
                    raise AssertionError(status)

    def health() -> None:
        with triton.InferenceServerClient(target) as client:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("m", headers=headers)
            assert client.get_model_metadata("m", headers=headers).name == "m"

    return [infer, stream, errors, health]


def main(target: str, key: str) -> None:
    """Do every row."""
    for row in list_rows(target, key):
        try:
            row()
            wrong = None
        except Exception:  # whatever the client raises is the answer of this row
            wrong = traceback.format_exc(limit=-3)
        print(json.dumps({"row": row.__name__, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
