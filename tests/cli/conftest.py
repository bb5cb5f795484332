"""What the tests of the commands share."""

import pytest

from tests.support.server import Serve


@pytest.fixture(scope="session")
def serve(serve_anew: Serve) -> Serve:
    """Here all processes begin as a user's do."""
    return serve_anew
