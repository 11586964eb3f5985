"""What all tests share: property tests have no deadline; CI draws the same examples each time."""

import os

from hypothesis import settings

settings.register_profile("mmmo", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("mmmo")
