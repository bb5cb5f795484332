"""An older place of a name."""

from ..handler_utils.utils import send_intermediate_predict_response as send_intermediate_predict_response
