"""The same requests get the same answers over `flambeau serve`, Flask's test client, and the servers of others."""

import base64
import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from tests.support.fronts import ERROR_KEYS, MAX_BODY, Answered, Front, post, refused
from tests.support.photographs import encoded, photograph

# -- the recipes -------------------------------------------------------------------------------------------------


def test_recipe_1_gets_exactly_its_two_keys(cats: Front, cat: bytes) -> None:
    answered = post(cats, files={"file": cat})
    assert answered.status == 200
    assert answered.body == b'{"class_id":"n02124075","class_name":"Egyptian_cat"}'


def test_recipe_2_gets_exactly_its_two_keys(cats: Front, cat: bytes) -> None:
    answered = post(cats, files={"image": ("chelsea.png", cat, "image/png")})
    body = answered.json()
    assert answered.status == 200
    assert list(body) == ["class_index", "probabilities"]
    assert body["class_index"] == 285
    assert len(body["probabilities"]) == 1000
    assert sum(body["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert max(range(1000), key=body["probabilities"].__getitem__) == 285


@pytest.mark.parametrize(
    "arguments",
    [{}, {"data": {"a": "1"}}, {"files": {"picture": b"x"}}, {"files": {"a": (None, "1")}}],
    ids=["nothing", "a form without files", "another file", "a multipart form without files"],
)
def test_recipe_2_without_an_image_is_told_no_image_part(cats: Front, arguments: dict[str, Any]) -> None:
    answered = post(cats, **arguments)
    assert answered.status == 400
    assert answered.json()["error"] == "no image part"
    assert answered.json()["code"] in ("missing_file", "empty_body")


def test_a_raw_body_without_a_byte_is_told_as_an_empty_file_is(cats: Front) -> None:
    """It is the file. "no image part" belongs to a request that says nothing of an image."""
    for kind in ("image/jpeg", "IMAGE/PNG; a=b", "application/octet-stream"):
        sentence = refused(post(cats, data=b"", headers={"Content-Type": kind}), 400, "empty_body")
        assert sentence == refused(post(cats, files={"file": b""}), 400, "empty_body") == "the file is empty"


def test_recipe_3_gets_its_number(doubles: Front) -> None:
    answered = post(doubles, json={"input": 3})
    assert (answered.status, answered.body) == (200, b'{"output":6.0}')


def test_recipe_3_is_told_what_is_wrong(doubles: Front) -> None:
    assert refused(post(doubles, json={"input": "three"}), 400, "input_rejected") == "input must be a number, not str"


# -- KServe's protocols ------------------------------------------------------------------------------------------


def test_kserve_v2_takes_the_bytes_of_an_image(cats: Front, cat: bytes) -> None:
    length = "Inference-Header-Content-Length"
    answered = cats.send("POST", "/v2/models/efficientnet_lite0/infer", data=cat, headers={length: "0"})
    assert (answered.status, answered.headers["content-type"]) == (200, "application/octet-stream")
    size = int(answered.headers[length.lower()])
    document, tensors = json.loads(answered.body[:size]), answered.body[size:]
    probabilities = np.frombuffer(tensors[:4000], "<f4")
    assert [each["name"] for each in document["outputs"]][:2] == ["probabilities", "labels"]
    assert probabilities.argmax() == 285
    assert tensors[4000:].startswith(struct.pack("<I", len("Egyptian_cat")) + b"Egyptian_cat")
    refused = post(cats, "/v2/models/efficientnet_lite0/infer", data=b"text", headers={length: "0"})
    assert (refused.status, list(refused.json())) == (400, ["error"])


def test_kserve_v1_takes_base64(cats: Front, cat: bytes) -> None:
    body = {"instances": [{"b64": base64.b64encode(cat).decode()}] * 2}
    answered = post(cats, "/v1/models/efficientnet_lite0:predict", json=body)
    assert answered.json() == {"predictions": [{"class_id": "n02124075", "class_name": "Egyptian_cat"}] * 2}


def test_kserve_takes_values_and_compressed_bodies(doubles: Front) -> None:
    assert post(doubles, "/v1/models/Double:predict", json={"instances": [3, 4]}).json() == {"predictions": [6.0, 8.0]}
    asked = {"inputs": [{"name": "input", "shape": [2], "datatype": "BYTES", "data": ["3", "4"]}]}
    packed = gzip.compress(json.dumps(asked).encode())
    answered = post(doubles, "/v2/models/Double/infer", data=packed, headers={"Content-Encoding": "gzip"})
    assert answered.json()["outputs"][0]["data"] == ["6.0", "8.0"]


def test_torchserves_clients_get_the_first_five_classes(cats: Front, cat: bytes) -> None:
    answered = post(cats, "/predictions/efficientnet_lite0", files={"data": cat})
    assert (next(iter(answered.json())), len(answered.json())) == ("Egyptian_cat", 5)


def test_torchserves_clients_get_its_forms(doubles: Front) -> None:
    assert post(doubles, "/predictions/Double", json=3).json() == 6.0
    assert refused_there(post(doubles, "/predictions/nobody", json=3)) == (404, "ModelNotFoundException")
    assert doubles.send("GET", "/ping").json() == {"status": "Healthy"}


def refused_there(answered: Answered) -> tuple[int, str]:
    return answered.json()["code"], answered.json()["type"]


# -- images ------------------------------------------------------------------------------------------------------


def test_a_raw_body_is_as_a_file(cats: Front, cat: bytes) -> None:
    for content_type in ("image/png", "image/jpeg", "application/octet-stream"):
        answered = post(cats, data=cat, headers={"Content-Type": content_type})
        assert answered.json() == {"class_id": "n02124075", "class_name": "Egyptian_cat"}


def test_top_k_adds_ranked_predictions(cats: Front, cat: bytes) -> None:
    body = post(cats, "/predict?top_k=5", files={"file": cat}).json()
    assert (body["class_id"], body["class_name"]) == ("n02124075", "Egyptian_cat")
    ranked = body["predictions"]
    assert [each["class_name"] for each in ranked[:2]] == ["Egyptian_cat", "tabby"]
    assert all(each.keys() == {"class_id", "class_name", "probability"} for each in ranked)
    probabilities = [each["probability"] for each in ranked]
    assert len(ranked) == 5
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("query", ["top_k=0", "top_k=x", "top_k=1001", "threshold=2", "threshold=nan", "threshold="])
def test_a_bad_query_parameter_is_refused_by_name(cats: Front, cat: bytes, query: str) -> None:
    sentence = refused(post(cats, f"/predict?{query}", files={"file": cat}), 400, "bad_request")
    assert query.split("=")[0] in sentence


@pytest.mark.parametrize("query", ["top_k=5", "threshold=0.5", "mask=png"])
def test_a_parameter_of_another_task_is_refused(doubles: Front, query: str) -> None:
    name = query.split("=")[0]
    sentence = refused(post(doubles, f"/predict?{query}", json={"input": 1}), 400, "bad_request")
    assert sentence == f"?{name}= has no effect on this model, whose task is python: leave it out"
    assert post(doubles, "/predict?utm_source=x", json={"input": 1}).json() == {"output": 2.0}


def test_below_the_threshold_nothing_was_recognised(cats: Front, cat: bytes) -> None:
    body = post(cats, "/predict?threshold=0.9", files={"file": cat}).json()
    assert (body["class_id"], body["class_name"]) == (None, None)
    assert "below the threshold 0.9" in body["reason"]
    body = post(cats, "/predict?threshold=0.9&top_k=2", files={"image": cat}).json()
    assert body["class_index"] is None
    assert len(body["probabilities"]) == 1000
    assert len(body["predictions"]) == 2


def test_the_default_model_abstains_from_noise(cats: Front) -> None:
    grey = encoded(photograph("chelsea").resize((4, 4)).resize((300, 300)))
    assert post(cats, files={"file": grey}).json()["class_id"] is None


def test_several_images_come_back_in_order_and_a_bad_one_fails_alone(cats: Front, cat: bytes) -> None:
    rocket = encoded(photograph("rocket"), "JPEG")
    parts = [("file", cat), ("file", b"no image"), ("image", rocket), ("file", b""), ("file", cat)]
    answered = post(cats, "/predict?threshold=0", files=[(name, ("x", data)) for name, data in parts])
    body = answered.json()["predictions"]
    assert answered.status == 200
    assert [each.get("class_id") for each in (body[0], body[4])] == ["n02124075"] * 2
    assert body[1]["code"] == "unsupported_image_format"
    assert body[2].keys() == {"class_index", "probabilities"}
    assert body[3]["code"] == "empty_body"
    assert body[1].keys() - {"hint"} == ERROR_KEYS


def test_too_many_images_are_refused(cats: Front) -> None:
    files = [("file", ("x", b"1"))] * 65
    refused(post(cats, files=files), 413, "too_many_parts")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims a huge size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_hostile_files_are_refused_and_the_server_is_unharmed(cats: Front, cat: bytes) -> None:
    """F-28, F-29, F-30, F-32."""
    jpeg = encoded(photograph("coffee"), "JPEG")
    for data, status, code in (
        (b"", 400, "empty_body"),
        (b"just some words, named cat.jpg", 415, "unsupported_image_format"),
        (jpeg[: len(jpeg) // 2], 422, "image_undecodable"),
        (bomb(65_500, 65_500), 413, "image_too_large"),
        (bomb(40_001, 1_000), 413, "image_too_large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "unsupported_image_format"),
    ):
        refused(post(cats, files={"file": ("cat.jpg", data, "image/jpeg")}), status, code)
    assert post(cats, files={"file": cat}).status == 200


def test_json_for_an_image_model_is_told_what_to_send(cats: Front) -> None:
    sentence = refused(post(cats, json={"input": 3}), 415, "unsupported_media_type")
    assert "image" in sentence


def test_a_form_that_is_cut_short_is_no_form_without_files(cats: Front, cat: bytes) -> None:
    """F-32."""
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + cat
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(post(cats, data=body, headers=headers), 400, "multipart_truncated")
    refused(post(cats, data=body, headers={"Content-Type": "multipart/form-data"}), 400, "invalid_multipart")


def test_a_body_over_the_limit_is_refused_and_the_refusal_is_read(cats: Front) -> None:
    """F-35: the limit itself is taken, one byte more is not; chunked bodies too."""
    headers = {"Content-Type": "image/png"}
    refused(post(cats, data=b"x" * MAX_BODY, headers=headers), 415, "unsupported_image_format")
    refused(post(cats, data=b"x" * (MAX_BODY + 1), headers=headers), 413, "body_too_large")


def test_a_compressed_body_is_refused(cats: Front, cat: bytes) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    refused(post(cats, data=cat, headers=headers), 415, "unsupported_content_encoding")


# -- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"not json", 400, "invalid_json"),
        (b'{"x": 1}', 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b"null", 400, "invalid_json"),
        (b'{"input": 3', 400, "invalid_json"),
        (b'{"input": NaN}', 400, "json_not_finite"),
        (b'{"input": -Infinity}', 400, "json_not_finite"),
        (b'{"input": 1e999}', 400, "invalid_json"),
        (b'{"input": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "json_too_deep"),
        (b'{"input":' * 100_000 + b"1" + b"}" * 100_000, 400, "json_too_deep"),
        (b"\xef\xbb\xbf" + b'{"input": 3}', 400, "invalid_json"),
        ('{"input": 3}'.encode("utf-16"), 400, "invalid_json"),
        (b'{"input": null}', 400, "input_rejected"),
    ],
)
def test_bad_json_is_refused_with_its_reason(doubles: Front, body: bytes, status: int, code: str) -> None:
    """F-33, F-34."""
    headers = {"Content-Type": "application/json"}
    refused(post(doubles, data=body, headers=headers), status, code)
    assert post(doubles, json={"input": 1.5}).json() == {"output": 3.0}


def test_json_without_its_content_type_is_told_so(doubles: Front) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        answered = post(doubles, data=b'{"input": 3}', headers={"Content-Type": content_type})
        assert "Content-Type: application/json" in refused(answered, 415, "unsupported_media_type")


def test_a_python_model_gets_the_uploaded_bytes(doubles: Front) -> None:
    sentence = refused(post(doubles, files={"file": b"abc"}), 400, "input_rejected")
    assert sentence == "input must be a number, not bytes"


# -- routes ------------------------------------------------------------------------------------------------------


def test_a_model_answers_by_name_and_version(cats: Front, cat: bytes) -> None:
    for path in ("/predict/efficientnet_lite0", "/predict/efficientnet_lite0/1"):
        assert post(cats, path, files={"file": cat}).json()["class_name"] == "Egyptian_cat"
    refused(post(cats, "/predict/other", files={"file": cat}), 404, "model_not_found")
    refused(post(cats, "/predict/efficientnet_lite0/2", files={"file": cat}), 404, "version_not_found")


def test_a_slash_at_the_end_makes_no_difference_u19(doubles: Front) -> None:
    for path in ("/predict/", "/predict/Double/", "/predict/Double/1/"):
        assert post(doubles, path, json={"input": 4}).json() == {"output": 8.0}


@pytest.mark.parametrize("path", ["/infer/Double", "/invocations", "/predict/a/b/c"])
def test_who_asks_nearly_at_the_right_address_is_told_it_u19(doubles: Front, path: str) -> None:
    answered = post(doubles, path, json={"input": 4})
    refused(answered, 404, "not_found")
    assert "POST /predict" in answered.json()["hint"]
    assert "POST /predict" in doubles.send("GET", "/predict").json()["hint"]


@pytest.mark.parametrize("name", ["..%2f", "a%00b", "%ff", "a;b", "CON", "x" * 300, "%e2%80%ae"])
def test_hostile_model_names_are_not_found(cats: Front, cat: bytes, name: str) -> None:
    """T-06, F-40."""
    answered = cats.send("POST", f"/predict/{name}", files={"file": cat})
    assert answered.status in (404, 405, 308)


def test_wrong_methods_and_unknown_routes_are_told_in_json(cats: Front) -> None:
    answered = cats.send("GET", "/predict")
    refused(answered, 405, "method_not_allowed")
    assert "POST" in answered.headers["allow"]
    refused(cats.send("PUT", "/predict/efficientnet_lite0"), 405, "method_not_allowed")
    refused(cats.send("GET", "/nothing/here"), 404, "not_found")
    refused(cats.send("POST", "/predict/a/b/c"), 404, "not_found")


def test_health_tells_the_truth(cats: Front) -> None:
    live, ready = cats.send("GET", "/livez"), cats.send("GET", "/readyz")
    assert (live.status, live.json()) == (200, {"status": "live"})
    assert (ready.status, ready.json()) == (200, {"status": "ready", "models": {"efficientnet_lite0": "ready"}})
    assert cats.send("HEAD", "/livez").body == b""


def test_the_request_id_is_the_clients_where_it_is_harmless(cats: Front) -> None:
    """T-27, T-35."""
    for given in ("my-request.1_A", "a" * 64):
        assert cats.send("GET", "/livez", headers={"X-Request-ID": given}).headers["x-request-id"] == given
    for given in ("a b", "a" * 65, "{}"):
        assert cats.send("GET", "/livez", headers={"X-Request-ID": given}).headers["x-request-id"] != given


def test_server_timing_says_where_the_time_went(cats: Front, cat: bytes) -> None:
    header = post(cats, files={"file": cat}).headers["server-timing"]
    stages = dict(part.split(";dur=") for part in header.split(", "))
    assert list(stages) == ["queue", "preprocess", "inference", "postprocess", "total"]
    assert float(stages["total"]) >= float(stages["inference"]) > 0


def test_a_deadline_too_short_is_told_so(cats: Front, cat: bytes) -> None:
    answered = post(cats, files={"file": cat}, headers={"X-Request-Timeout-Ms": "1"})
    refused(answered, 504, "deadline_exceeded")
    answered = post(cats, files={"file": cat}, headers={"X-Request-Timeout-Ms": "soon"})
    refused(answered, 400, "bad_request")


def test_metrics_count_requests_and_batches(cats: Front, cat: bytes) -> None:
    post(cats, files={"file": cat})
    text = cats.send("GET", "/metrics").body.decode()
    assert 'flambeau_requests_total{model="efficientnet_lite0",protocol="native",status="200",version="1"}' in text
    assert 'flambeau_batches_closed_total{model="efficientnet_lite0",reason="' in text  # why: as the model was measured


def test_unknown_paths_add_no_metric_series(cats: Front) -> None:
    """T-28."""
    before = cats.send("GET", "/metrics").body.count(b"\n")
    for number in range(50):
        cats.send("POST", f"/predict/made-up-{number}", data=b"x")
        cats.send("GET", f"/made/up/{number}")
    assert cats.send("GET", "/metrics").body.count(b"\n") == before


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_page_answers_a_form_without_javascript(cats: Front, cat: bytes) -> None:
    page = cats.send("GET", "/")
    assert page.status == 200
    assert b'enctype="multipart/form-data"' in page.body
    answered = cats.send("POST", "/", files={"file": ("c.png", cat)})
    assert answered.status == 200
    assert b'<h3 class="verdict">Egyptian cat</h3>' in answered.body
    assert answered.body.count(b'<svg class="bar"') == 5 + 1  # and the template's


def test_the_page_tells_errors_in_words_with_their_status(cats: Front) -> None:
    answered = cats.send("POST", "/", files={"file": ("c.png", b"no picture")})
    assert answered.status == 415
    assert b"not an image that this model reads" in answered.body
    assert cats.send("POST", "/", files={"file": ("", b"")}).status == 400
    assert cats.send("POST", "/", data=b"").status == 400


def test_the_page_is_locked_down(cats: Front) -> None:
    """T-12."""
    headers = cats.send("GET", "/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert cats.send("GET", "/static/style.css").headers["content-type"].startswith("text/css")
    assert cats.send("GET", "/static/..%2fapp.py").status == 404


def test_the_page_of_a_python_model_takes_json(doubles: Front) -> None:
    page = doubles.send("GET", "/")
    assert b"<textarea" in page.body
    answered = doubles.send("POST", "/", files={"input": (None, "21")})
    assert b'<h3 class="verdict">42</h3>' in answered.body
    answered = doubles.send("POST", "/", files={"input": (None, '"<img src=x onerror=alert(1)>"')})
    assert answered.status == 400
    assert b"<img src=x" not in answered.body
    assert b"&lt;img src=x" in answered.body


def test_an_uploaded_file_is_shown_as_text_and_as_a_picture_and_as_nothing_else(cats: Front, cat: bytes) -> None:
    """T-12: the name is text of the page, and what begins like no picture that browsers draw is not shown."""
    answered = cats.send("POST", "/", files={"file": ("<script>alert(1)</script>.png", cat)})
    assert b"<script>alert" not in answered.body
    assert b"&lt;script&gt;alert(1)&lt;/script&gt;.png" in answered.body
    assert b"data:image/png;base64," + base64.b64encode(cat) in answered.body
    hostile = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    answered = cats.send("POST", "/", files={"file": ("<script>alert(1)</script>.svg", hostile)})
    assert b"<script>alert" not in answered.body
    assert base64.b64encode(hostile) not in answered.body
