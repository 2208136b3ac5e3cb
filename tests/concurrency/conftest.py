from __future__ import annotations

import pytest

from tests.concurrency.files import Files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Files in a phase to begin with."""
    return Files(tmp_path_factory.mktemp("files"))
