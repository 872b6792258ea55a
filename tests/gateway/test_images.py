"""Generation of images: what was made is billed by the image, never more than was asked for."""

import base64
import re
import struct
from typing import Any

import msgspec
import openai
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import KEY, NOWHERE, Served, gateway, post, whole
from tests.gateway.test_request_quantities import admit_of
from tollway.domain.billing_classes import BillingClass, OtherClasses, Quantities
from tollway.domain.budgets import find_fixed_cost
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.limits import Limits
from tollway.domain.usage import Outcome, UsageSource
from tollway.engines.table import ENGINES
from tollway.gateway.dialects.answers import AnswerContext
from tollway.gateway.dialects.image_generations import OUTPUT_TOKENS_MAX, PIXELS_MAX, read_answer

PATH = "/v1/images/generations"
ASKED = {"model": "m", "prompt": "a toll gate", "n": 2}
IMAGE = {"b64_json": "aGVsbG8="}


def answer_of(images: int, **members: Any) -> bytes:
    return whole({"created": 1, "data": [IMAGE] * images} | members)


async def test_official_client_gets_its_images_and_pays_for_each() -> None:
    async with Upstream([answer_of(2)]).listening() as upstream, gateway({"m": Served([upstream.url], upstream_model="own")}) as made:
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            answer = await client.images.generate(model="m", prompt="a toll gate", n=2, size="1024x1024")
        final = await made.sink.settled()
        assert made.plane.metrics.anomalies == {}
    assert [image.b64_json for image in answer.data or []] == ["aGVsbG8="] * 2
    asked = msgspec.json.decode(upstream.asked[0].body)
    asked.pop("cache_salt", None)
    assert asked == {"model": "own", "prompt": "a toll gate", "n": 2, "size": "1024x1024"}
    assert (final.outcome, final.admit.endpoint, final.source) == (Outcome.COMPLETED, "images/generations", UsageSource.ENGINE_FINAL)
    assert final.used == Quantities(other=OtherClasses(images=2, pixels=2 * 1024 * 1024))


@pytest.mark.parametrize(
    ("answer", "used", "anomaly"),
    [
        (answer_of(1), Quantities(other=OtherClasses(images=1)), None),
        (answer_of(3), Quantities(other=OtherClasses(images=2)), "usage_inflated"),
        (
            answer_of(2, usage={"input_tokens": 9, "input_tokens_details": {"image_tokens": 4}, "output_tokens": 4000}),
            Quantities(5, other=OtherClasses(image_input=4, image_output=4000, images=2)),
            None,
        ),
        (
            answer_of(2, usage={"input_tokens": 9, "output_tokens": 90, "output_tokens_details": {"image_tokens": 80, "text_tokens": 10}}),
            Quantities(9, output=10, other=OtherClasses(image_output=80, images=2)),
            None,
        ),
        (
            answer_of(2, usage={"input_tokens": 9, "output_tokens": 40_000}),
            Quantities(9, other=OtherClasses(image_output=2 * OUTPUT_TOKENS_MAX, images=2)),
            "usage_inflated",
        ),
        (answer_of(2, usage={"input_tokens": -1}), Quantities(other=OtherClasses(images=2)), "usage_invalid"),
        (whole({"created": 1, "data": [IMAGE, {}, None, {"b64_json": ""}]}), Quantities(other=OtherClasses(images=1)), "usage_inflated"),
        (answer_of(2, usage=[]), Quantities(other=OtherClasses(images=2)), "usage_invalid"),
    ],
)
async def test_133_images_are_billed_as_they_were_delivered_and_as_far_as_they_were_asked_for(
    answer: bytes, used: Quantities, anomaly: str | None
) -> None:
    async with Upstream([answer]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        assert (await post(made.port, ASKED, PATH)).status == 200
        final = await made.sink.settled()
    assert (final.used, final.anomaly) == (used, anomaly)


@pytest.mark.parametrize(
    "body", [{"error": {"message": "x", "code": 500}}, {"created": 1}, {"data": []}, {"data": [{}, None, {"url": ""}]}, [IMAGE]]
)
async def test_answer_without_images_is_a_fault_of_the_engine_and_bills_none(body: Any) -> None:
    async with Upstream([whole(body)]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        assert (await post(made.port, ASKED, PATH)).status in (500, 502)
        final = await made.sink.settled()
    assert (final.outcome, final.used) == (Outcome.UPSTREAM_ERROR, Quantities())


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"stream": True}, "stream"),
        ({"partial_images": 2}, "partial_images"),
        ({"response_format": "file"}, "response_format"),
        ({"image": "x"}, "image"),
        ({"size": "99999x99999"}, "size"),
    ],
)
async def test_bad_image_request_is_refused_with_the_name_of_the_field(changed: dict[str, Any], param: str) -> None:
    async with gateway({"m": Served([NOWHERE])}) as made:
        answer = await post(made.port, ASKED | changed, PATH)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


def test_cost_of_the_images_that_are_asked_for_is_known_at_admission() -> None:
    call = admit_of({"m": Served([NOWHERE])}, Endpoint.IMAGE_GENERATIONS, ASKED | {"size": "20x10"})
    assert (call.sequences, call.output_tokens_max, call.dialect.counts_images) == (2, 2 * OUTPUT_TOKENS_MAX, True)
    assert call.measure is not None and call.measure.pixels == 400
    prices = Quantities(3, request=5, other=OtherClasses(images=1_000, pixels=7))
    assert find_fixed_cost(prices, 10, call.sequences, OtherClasses(pixels=call.measure.pixels)) == 10 * 3 + 5 + 2_000 + 400 * 7


async def test_amount_that_a_refused_request_is_told_suffices_although_nothing_bounds_its_tokens() -> None:
    async with Upstream([answer_of(2)]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        refused = await post(made.port, ASKED, PATH, x_max_cost="0.000000000001")
        told = re.search(r"can cost ([0-9.]+) EUR or more", refused.error["message"])
        assert (refused.status, refused.error["code"]) == (400, "max_cost_exceeded") and told is not None
        assert (await post(made.port, ASKED, PATH, x_max_cost=told[1])).status == 200


def png_of(width: int, height: int) -> str:
    head = struct.pack(">I4sIIBBBBBI", 13, b"IHDR", width, height, 1, 0, 0, 0, 0, 0)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + b"\0\0\0\0IDAT").decode()


@pytest.mark.parametrize(
    ("size", "made", "pixels"),
    [
        ("20x10", {"b64_json": png_of(20, 10)}, 200),
        ("20x10", {"b64_json": png_of(16, 8)}, 128),  # an engine that rounds sizes down
        ("20x10", {"b64_json": png_of(4096, 4096)}, 200),  # no more than was asked for
        ("20x10", {"url": "https://engine/1.png"}, 200),
        ("20x10", {"b64_json": png_of(0, 10)}, 200),
        ("20x10", {"b64_json": "iVBORw0K=é"}, 200),
        ("auto", {"b64_json": png_of(30, 10)}, 300),
        (None, {"b64_json": png_of(30, 10)}, 300),
        ("auto", {"b64_json": png_of(2**31 - 1, 2**31 - 1)}, PIXELS_MAX),
        ("auto", {"url": "https://engine/1.png"}, 0),
        ("0x10", {"b64_json": png_of(30, 10)}, 300),
    ],
)
def test_pixels_are_those_of_the_picture_and_at_most_those_that_were_asked_for(size: str | None, made: dict[str, str], pixels: int) -> None:
    call = admit_of({"m": Served([NOWHERE])}, Endpoint.IMAGE_GENERATIONS, ASKED | ({} if size is None else {"size": size}))
    context = AnswerContext(ENGINES[Engine.SIM], "m", "m", 9, 9, 1, call.sequences, True, True, False, measure=call.measure)
    answer = read_answer(msgspec.json.encode({"data": [made] * 3}), context)
    assert answer.used is not None and answer.used.get(BillingClass.PIXELS) == 2 * pixels


@pytest.mark.parametrize("size", [None, "", "auto", "large", "1024", "0x10", "20X10", "20x10x3"])
async def test_model_that_is_sold_by_pixels_must_be_told_the_size_before_an_engine_works(size: str | None) -> None:
    asked = ASKED | ({} if size is None else {"size": size})
    async with Upstream([answer_of(2)]).listening() as upstream, gateway({"m": Served([upstream.url], pixel_price=7)}) as made:
        answer = await post(made.port, asked, PATH)
        told = await post(made.port, ASKED | {"size": "20x10"}, PATH)
        final = await made.sink.settled()
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_value", "size")
    assert "WIDTHxHEIGHT" in answer.error["message"]
    assert told.status == 200 and len(upstream.asked) == 1
    assert final.used == Quantities(other=OtherClasses(images=2, pixels=400))


async def test_limit_on_images_holds_what_is_asked_for_keeps_what_was_made_and_refuses_what_is_beyond_it() -> None:
    limits = Limits(images_per_day=5)
    async with (
        Upstream(lambda asked: [answer_of(1 if b'"n":3' in asked.body else 2)]).listening() as upstream,
        gateway({"m": Served([upstream.url])}, limits=limits) as made,
    ):
        answers = [await post(made.port, ASKED | {"n": n}, PATH) for n in (3, 2, 3, 6)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert [int(answer.headers["x-ratelimit-remaining-images"]) for answer in answers] == [2, 2, 2, 2]
    assert answers[2].error["type"] == "requests" and "Rate limit reached for images per day of " in answers[2].error["message"]
    assert answers[3].headers["x-should-retry"] == "false" and "ask for fewer images at a time." in answers[3].error["message"]
