"""The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, its health service, and reflection.

Nothing here is imported unless `--grpc-port` is set, and only this room imports grpc. It knows no HTTP: whoever starts
it says who may call what.
"""
