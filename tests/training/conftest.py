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
    """An uninterrupted run of 20 steps, what every interrupted one has to equal: its folder, result and events."""
    path, events = tmp_path_factory.mktemp("whole") / "run", []

    def callback(event):
        event.log({f"test/{event.name}": event.step})
        events.append(event)

    config = tiny_config(tiny_data, "training.evaluate_every=4", "training.video_every=6")
    return path, train(config, path, [callback], progress=False), events


@pytest.fixture(scope="session")
def half_run(tiny_data, tmp_path_factory):
    """The folder of a run that has done 10 of the 20 steps."""
    path = tmp_path_factory.mktemp("half") / "run"
    train(tiny_config(tiny_data, "stages.joint.steps=10"), path, progress=False)
    return path
