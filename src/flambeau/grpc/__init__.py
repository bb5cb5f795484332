"""The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, its health service, and reflection.

Nothing but names is imported unless `--grpc-port` is set, or Ray Serve's proxy passes on a call; and only this room
imports grpc, and `flambeau.ray` in that proxy. It knows no HTTP: whoever starts it says who may call what.
"""
