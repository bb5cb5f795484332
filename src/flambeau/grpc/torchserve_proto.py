"""TorchServe's own gRPC in its own words: the messages of its inference and management services.

Written as those of `flambeau.grpc.inference_proto`: names, types and numbers are those that TorchServe 0.12 publishes,
so that stubs made of its files are understood; `make test-torchserve` compares them. A type with a dot before it is
one of another file. What TorchServe calls `optional` stands here as the `oneof` that it is made of.
"""

from flambeau.grpc.inference_proto import MessageFields

_ONE = "string model_name = 1; string model_version = 2"

TORCHSERVE_INFERENCE: MessageFields = {
    "PredictionsRequest": f"{_ONE}; map<string, bytes> input = 3; oneof _sequence_id string sequence_id = 4",
    "PredictionResponse": """
        bytes prediction = 1; oneof _sequence_id string sequence_id = 2;
        oneof _status .google.rpc.Status status = 3
    """,
    "TorchServeHealthResponse": "string health = 1",
}

TORCHSERVE_INFERENCE_CALLS = (
    ("Ping", ".google.protobuf.Empty", "TorchServeHealthResponse", False, False),
    ("Predictions", "PredictionsRequest", "PredictionResponse", False, False),
    ("StreamPredictions", "PredictionsRequest", "PredictionResponse", False, True),
    ("StreamPredictions2", "PredictionsRequest", "PredictionResponse", True, True),
)
"""Calls: name, request, response, and whether there are many requests, many responses."""

TORCHSERVE_MANAGEMENT: MessageFields = {
    "ManagementResponse": "string msg = 1",
    "DescribeModelRequest": f"{_ONE}; bool customized = 3",
    "ListModelsRequest": "int32 limit = 1; int32 next_page_token = 2",
    "RegisterModelRequest": """
        int32 batch_size = 1; string handler = 2; int32 initial_workers = 3; int32 max_batch_delay = 4;
        string model_name = 5; int32 response_timeout = 6; string runtime = 7; bool synchronous = 8; string url = 9;
        bool s3_sse_kms = 10; int32 startup_timeout = 11
    """,
    "ScaleWorkerRequest": f"""
        {_ONE}; int32 max_worker = 3; int32 min_worker = 4; int32 number_gpu = 5; bool synchronous = 6;
        int32 timeout = 7
    """,
    "SetDefaultRequest": _ONE,
    "UnregisterModelRequest": _ONE,
}

TORCHSERVE_MANAGEMENT_CALLS = tuple(
    (name, f"{name}Request", "ManagementResponse", False, False)
    for name in ("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel")
)
