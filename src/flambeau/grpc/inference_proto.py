"""The protocol in its own words: the messages and calls of `inference.GRPCInferenceService`, health and reflection.

Each line of a message is a field as a `.proto` file has it. Names, types and numbers are those that the Open Inference
Protocol and Triton publish, so that clients of either are understood; tests compare them with a client's own. Of
Triton's `ModelConfig` it has the fields that are answered: to a reader, a field that is not sent and one that is not
known are the same. This module only holds the text: `flambeau.grpc.descriptors` makes classes of it.
"""

MessageFields = dict[str, str]
"""Messages by name, with dots for those inside of others, and their fields."""

INFERENCE_SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

_NAMED = "string name = 1; string version = 2"
_PARAMETERS = "map<string, InferParameter> parameters"
_OF_REPOSITORY = "map<string, ModelRepositoryParameter> parameters"

INFERENCE: MessageFields = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_NAMED}; repeated string extensions = 3",
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": """
        string name = 1; repeated string versions = 2; string platform = 3;
        repeated ModelMetadataResponse.TensorMetadata inputs = 4;
        repeated ModelMetadataResponse.TensorMetadata outputs = 5
    """,
    "ModelMetadataResponse.TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3",
    "InferParameter": """
        oneof parameter_choice bool bool_param = 1; oneof parameter_choice int64 int64_param = 2;
        oneof parameter_choice string string_param = 3; oneof parameter_choice double double_param = 4;
        oneof parameter_choice uint64 uint64_param = 5
    """,
    "InferTensorContents": """
        repeated bool bool_contents = 1; repeated int32 int_contents = 2; repeated int64 int64_contents = 3;
        repeated uint32 uint_contents = 4; repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6;
        repeated double fp64_contents = 7; repeated bytes bytes_contents = 8
    """,
    "ModelInferRequest": f"""
        string model_name = 1; string model_version = 2; string id = 3; {_PARAMETERS} = 4;
        repeated ModelInferRequest.InferInputTensor inputs = 5;
        repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6;
        repeated bytes raw_input_contents = 7
    """,
    "ModelInferRequest.InferInputTensor": f"""
        string name = 1; string datatype = 2; repeated int64 shape = 3; {_PARAMETERS} = 4;
        InferTensorContents contents = 5
    """,
    "ModelInferRequest.InferRequestedOutputTensor": f"string name = 1; {_PARAMETERS} = 2",
    "ModelInferResponse": f"""
        string model_name = 1; string model_version = 2; string id = 3; {_PARAMETERS} = 4;
        repeated ModelInferResponse.InferOutputTensor outputs = 5; repeated bytes raw_output_contents = 6
    """,
    "ModelInferResponse.InferOutputTensor": f"""
        string name = 1; string datatype = 2; repeated int64 shape = 3; {_PARAMETERS} = 4;
        InferTensorContents contents = 5
    """,
    "ModelStreamInferResponse": "string error_message = 1; ModelInferResponse infer_response = 2",
    "ModelConfigRequest": _NAMED,
    "ModelConfigResponse": "ModelConfig config = 1",
    "ModelConfig": """
        string name = 1; string platform = 2; ModelVersionPolicy version_policy = 3; int32 max_batch_size = 4;
        repeated ModelInput input = 5; repeated ModelOutput output = 6; repeated ModelInstanceGroup instance_group = 7;
        oneof scheduling_choice ModelDynamicBatching dynamic_batching = 11;
        map<string, ModelParameter> parameters = 14; string backend = 17;
        ModelTransactionPolicy model_transaction_policy = 19
    """,
    "ModelVersionPolicy": """
        oneof policy_choice ModelVersionPolicy.All all = 2; oneof policy_choice ModelVersionPolicy.Specific specific = 3
    """,
    "ModelVersionPolicy.All": "",
    "ModelVersionPolicy.Specific": "repeated int64 versions = 1",
    "ModelInput": """
        string name = 1; enum DataType data_type = 2; repeated int64 dims = 4; ModelTensorReshape reshape = 5;
        bool optional = 8
    """,
    "ModelOutput": """
        string name = 1; enum DataType data_type = 2; repeated int64 dims = 3; ModelTensorReshape reshape = 5
    """,
    "ModelTensorReshape": "repeated int64 shape = 1",
    "ModelInstanceGroup": "string name = 1; int32 count = 2; enum ModelInstanceGroup.Kind kind = 4",
    "ModelDynamicBatching": "repeated int32 preferred_batch_size = 1; uint64 max_queue_delay_microseconds = 2",
    "ModelParameter": "string string_value = 1",
    "ModelTransactionPolicy": "bool decoupled = 1",
    "ModelStatisticsRequest": _NAMED,
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1",
    "ModelStatistics": """
        string name = 1; string version = 2; uint64 last_inference = 3; uint64 inference_count = 4;
        uint64 execution_count = 5; InferStatistics inference_stats = 6;
        repeated InferBatchStatistics batch_stats = 7; repeated MemoryUsage memory_usage = 8;
        map<string, InferResponseStatistics> response_stats = 9
    """,
    "InferResponseStatistics": """
        StatisticDuration compute_infer = 1; StatisticDuration compute_output = 2; StatisticDuration success = 3;
        StatisticDuration fail = 4; StatisticDuration empty_response = 5; StatisticDuration cancel = 6
    """,
    "StatisticDuration": "uint64 count = 1; uint64 ns = 2",
    "InferStatistics": """
        StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3;
        StatisticDuration compute_input = 4; StatisticDuration compute_infer = 5; StatisticDuration compute_output = 6;
        StatisticDuration cache_hit = 7; StatisticDuration cache_miss = 8
    """,
    "InferBatchStatistics": """
        uint64 batch_size = 1; StatisticDuration compute_input = 2; StatisticDuration compute_infer = 3;
        StatisticDuration compute_output = 4
    """,
    "MemoryUsage": "string type = 1; int64 id = 2; uint64 byte_size = 3",
    "ModelRepositoryParameter": """
        oneof parameter_choice bool bool_param = 1; oneof parameter_choice int64 int64_param = 2;
        oneof parameter_choice string string_param = 3; oneof parameter_choice bytes bytes_param = 4
    """,
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models = 1",
    "RepositoryIndexResponse.ModelIndex": "string name = 1; string version = 2; string state = 3; string reason = 4",
    "RepositoryModelLoadRequest": f"string repository_name = 1; string model_name = 2; {_OF_REPOSITORY} = 3",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": f"string repository_name = 1; string model_name = 2; {_OF_REPOSITORY} = 3",
    "RepositoryModelUnloadResponse": "",
    "SystemSharedMemoryStatusRequest": "string name = 1",
    "SystemSharedMemoryStatusResponse": "map<string, SystemSharedMemoryStatusResponse.RegionStatus> regions = 1",
    "SystemSharedMemoryStatusResponse.RegionStatus": """
        string name = 1; string key = 2; uint64 offset = 3; uint64 byte_size = 4
    """,
    "SystemSharedMemoryRegisterRequest": "string name = 1; string key = 2; uint64 offset = 3; uint64 byte_size = 4",
    "SystemSharedMemoryRegisterResponse": "",
    "SystemSharedMemoryUnregisterRequest": "string name = 1",
    "SystemSharedMemoryUnregisterResponse": "",
    "CudaSharedMemoryStatusRequest": "string name = 1",
    "CudaSharedMemoryStatusResponse": "map<string, CudaSharedMemoryStatusResponse.RegionStatus> regions = 1",
    "CudaSharedMemoryStatusResponse.RegionStatus": "string name = 1; uint64 device_id = 2; uint64 byte_size = 3",
    "CudaSharedMemoryRegisterRequest": """
        string name = 1; bytes raw_handle = 2; int64 device_id = 3; uint64 byte_size = 4
    """,
    "CudaSharedMemoryRegisterResponse": "",
    "CudaSharedMemoryUnregisterRequest": "string name = 1",
    "CudaSharedMemoryUnregisterResponse": "",
    "TraceSettingRequest": "map<string, TraceSettingRequest.SettingValue> settings = 1; string model_name = 2",
    "TraceSettingRequest.SettingValue": "repeated string value = 1",
    "TraceSettingResponse": "map<string, TraceSettingResponse.SettingValue> settings = 1",
    "TraceSettingResponse.SettingValue": "repeated string value = 1",
    "LogSettingsRequest": "map<string, LogSettingsRequest.SettingValue> settings = 1",
    "LogSettingsRequest.SettingValue": """
        oneof parameter_choice bool bool_param = 1; oneof parameter_choice uint32 uint32_param = 2;
        oneof parameter_choice string string_param = 3
    """,
    "LogSettingsResponse": "map<string, LogSettingsResponse.SettingValue> settings = 1",
    "LogSettingsResponse.SettingValue": """
        oneof parameter_choice bool bool_param = 1; oneof parameter_choice uint32 uint32_param = 2;
        oneof parameter_choice string string_param = 3
    """,
}

INFERENCE_ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "ModelInstanceGroup.Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip
"""Enumerations: the values from 0 on."""

INFERENCE_CALLS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus", "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
)  # fmt: skip
"""The calls of one message to one message: `XRequest` to `XResponse`. `ModelStreamInfer` is beside them."""

HEALTH: MessageFields = {
    "HealthCheckRequest": "string service = 1",
    "HealthCheckResponse": "enum HealthCheckResponse.ServingStatus status = 1",
}

HEALTH_ENUMS = {"HealthCheckResponse.ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")}

REFLECTION: MessageFields = {
    "ServerReflectionRequest": """
        string host = 1; oneof message_request string file_by_filename = 3;
        oneof message_request string file_containing_symbol = 4;
        oneof message_request ExtensionRequest file_containing_extension = 5;
        oneof message_request string all_extension_numbers_of_type = 6; oneof message_request string list_services = 7
    """,
    "ExtensionRequest": "string containing_type = 1; int32 extension_number = 2",
    "ServerReflectionResponse": """
        string valid_host = 1; ServerReflectionRequest original_request = 2;
        oneof message_response FileDescriptorResponse file_descriptor_response = 4;
        oneof message_response ExtensionNumberResponse all_extension_numbers_response = 5;
        oneof message_response ListServiceResponse list_services_response = 6;
        oneof message_response ErrorResponse error_response = 7
    """,
    "FileDescriptorResponse": "repeated bytes file_descriptor_proto = 1",
    "ExtensionNumberResponse": "string base_type_name = 1; repeated int32 extension_number = 2",
    "ListServiceResponse": "repeated ServiceResponse service = 1",
    "ServiceResponse": "string name = 1",
    "ErrorResponse": "int32 error_code = 1; string error_message = 2",
}
