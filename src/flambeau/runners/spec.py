"""What every replica of a model is opened with: plain values, so that it can be sent to another process."""

import msgspec


class ReplicaSpec(msgspec.Struct, frozen=True):
    """`bundle` is the folder's path, `device` is as the user asked, `threads` bounds the engine's own.

    `max_batch` is the most items that are usually answered together. `wide_threads`: how many the engine may take for a
    batch that is alone on the machine; 0 where that is not offered.
    """

    bundle: str
    name: str
    engine: str
    device: str
    threads: int
    allow_code: bool
    threshold: float | None
    max_image_pixels: int
    max_batch: int = 8
    wide_threads: int = 0
    fast_decode: bool = False
    max_json_depth: int = 32
