"""The contract tests for anybody's backend; needs pytest (`pip install 'pimcal[test]'`)."""

import pytest

pytest.register_assert_rewrite("pimcal.testing.contract")

from pimcal.testing.contract import BackendContract  # noqa: E402 - its assertions are rewritten first

__all__ = ["BackendContract"]
