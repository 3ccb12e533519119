"""One small data set for all tests of this folder."""

import pytest
from episode_samples import LENGTHS, SPEC, make_episodes

from jaxwm import data


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A data set of `LENGTHS`; not to be written to."""
    path = tmp_path_factory.mktemp("data") / "set"
    data.write_episodes(path, SPEC, {s: make_episodes(s) for s in LENGTHS}, "steps", {"made": "by a test"})
    return path
