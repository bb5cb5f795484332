"""Names that handlers of TorchServe import."""
