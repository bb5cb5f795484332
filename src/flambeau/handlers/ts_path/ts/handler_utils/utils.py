"""Answers in pieces: they are collected, and sent as one body with the last."""

from typing import Any


def send_intermediate_predict_response(
    ret: list[Any], req_id_map: dict[int, str], message: str, code: int, context: Any = None
) -> None:
    """Keep one piece for each request of the batch."""
    for index, piece in enumerate(ret):
        context.request_processor[index].pieces.append(piece)
