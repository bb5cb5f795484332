"""The tests lie by room; `support` is what they share and is no test."""

import pytest

pytest.register_assert_rewrite("tests.support")
