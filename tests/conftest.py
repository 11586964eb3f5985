"""What all tests share: property tests have no deadline; CI draws the same examples each time;
no test writes to the user's cache.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("mmmo", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("mmmo")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMMO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
