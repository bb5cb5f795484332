"""A model as a Lambda function: the events of function URLs, of APIs and of load balancers."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flambeau.serverless import LambdaFunction, lambda_function
from tests.support.tensor_bundles import doubling

BODY = '{"input": [1, 2, 3]}'
ANSWER = {"output": [2.0, 4.0, 6.0]}


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaFunction]:
    bundle = doubling(tmp_path_factory.mktemp("serverless") / "doubling")
    made = lambda_function(bundle, replicas=1, platform="sagemaker", predict_route="/invocations")
    yield made
    made.close()


def of_a_url(path: str = "/predict", method: str = "POST", *, stage: str = "$default", **more: Any) -> dict[str, Any]:
    """An event of a function URL or an HTTP API, as AWS documents it."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "abc.lambda-url.eu-west-1.on.aws",
                    "x-forwarded-proto": "https", "x-request-id": "mine", "content-length": "999"},
        "requestContext": {
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.5"}, "stage": stage,
        },
        "body": BODY,
        "isBase64Encoded": False,
    } | more  # fmt: skip


def of_an_api(path: str = "/predict", method: str = "POST", **more: Any) -> dict[str, Any]:
    """An event of a REST API."""
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": {"Content-Type": "application/json"},
        "multiValueHeaders": {"Content-Type": ["application/json"], "X-Request-ID": ["mine"]},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "requestContext": {"identity": {"sourceIp": "203.0.113.5"}, "stage": "prod"},
        "body": BODY,
        "isBase64Encoded": False,
    } | more


def of_a_balancer(**more: Any) -> dict[str, Any]:
    return {
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:1"}},
        "httpMethod": "POST",
        "path": "/predict",
        "queryStringParameters": {"stage": "3"},
        "headers": {"content-type": "application/json", "x-forwarded-for": "9.9.9.9, 203.0.113.5"},
        "body": base64.b64encode(BODY.encode()).decode(),
        "isBase64Encoded": True,
    } | more


@pytest.mark.parametrize(
    "event", [of_a_url(), of_an_api(), of_a_balancer(), of_a_url("/prod/predict", stage="prod")], ids=range(4)
)
def test_every_kind_of_event_is_answered(function: LambdaFunction, event: dict[str, Any]) -> None:
    answer = function(event, object())
    assert (answer["statusCode"], json.loads(answer["body"]), answer["isBase64Encoded"]) == (200, ANSWER, False)
    if "elb" in event["requestContext"]:
        assert answer["statusDescription"] == "200 OK"
    if "multiValueHeaders" in event:
        assert answer["multiValueHeaders"]["x-request-id"] == ["mine"]
    elif "version" in event:
        assert answer["headers"]["x-request-id"] == "mine"


def test_bytes_go_in_and_out_in_base64(function: LambdaFunction) -> None:
    file = io.BytesIO()
    np.save(file, np.array([[1, 2, 3]], np.float32))
    headers = {"content-type": "application/x-npy", "accept": "application/x-npy"}
    packed = base64.b64encode(file.getvalue()).decode()
    answer = function(of_a_url("/invocations", headers=headers, body=packed, isBase64Encoded=True))
    assert answer["isBase64Encoded"]
    assert np.load(io.BytesIO(base64.b64decode(answer["body"]))).tolist() == [[2, 4, 6]]


def test_queries_and_errors_arrive(function: LambdaFunction) -> None:
    wrong = [
        of_a_url(rawQueryString="top_k=x"),
        of_an_api(multiValueQueryStringParameters={"top_k": ["1", "2"]}),
        of_a_balancer(queryStringParameters={"top_k": "%78"}),
    ]
    for event in wrong:
        answer = function(event)
        assert (answer["statusCode"], "top_k" in json.loads(answer["body"])["error"]) == (400, True)
    assert function(of_a_url("/nowhere"))["statusCode"] == 404
    assert function(of_a_url("/readyz", "GET", body=None))["statusCode"] == 200
    assert function(of_a_url("/", "GET", body=None))["body"].startswith("<!doctype html>")


def test_events_without_a_request_are_refused(function: LambdaFunction) -> None:
    with pytest.raises(ValueError, match="holds no HTTP request"):
        function({"Records": [{"eventSource": "aws:s3"}]})
