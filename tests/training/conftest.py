import pytest
from tiny_model import tiny_config, write_tiny_data

from jaxwm.training import train


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """The path of a tiny data set."""
    path = tmp_path_factory.mktemp("tiny") / "data"
    write_tiny_data(path)
    return path


@pytest.fixture(scope="session")
def whole_run(tiny_data, tmp_path_factory):
    """An uninterrupted run of 20 steps: what every interrupted one has to equal."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, train(tiny_config(tiny_data, "training.ema=0.9"), path, progress=False)
