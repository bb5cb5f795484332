"""What every replica of a model is opened with: plain values, so that it can be sent to another process."""

import msgspec


class ReplicaSpec(msgspec.Struct, frozen=True):
    """`bundle` is the folder's path, `device` is as the user asked, `threads` bounds the engine's own.

    `wide_threads`: how many it may take for a batch that is alone on the machine; 0 where that is not offered.
    """

    bundle: str
    name: str
    engine: str
    device: str
    threads: int
    allow_code: bool
    threshold: float | None
    max_image_pixels: int
    wide_threads: int = 0
    fast_decode: bool = False
