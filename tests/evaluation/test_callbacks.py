"""Videos and figures while a model trains."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from jaxwm.config import load_config
from jaxwm.evaluation import ProbeCallback, VideoCallback, probes
from jaxwm.training import train


def test_videos_and_figures_come_at_their_interval(toy_config, tmp_path):
    config = load_config(toy_config, [f"data.path={tmp_path}/data", "evaluation.horizon=40"])
    train(config, tmp_path / "run", [VideoCallback(episodes=4, shown=3, scale=1)], progress=False)
    videos = sorted((tmp_path / "run" / "videos").iterdir())
    assert [path.name for path in videos] == ["step_00000003.gif", "step_00000006.gif"]
    with Image.open(videos[0]) as image:
        # 3 frames of context and, of the 40 asked for, the 9 that the episodes have left.
        assert image.n_frames == 12
        assert image.size[0] == 2 * (3 * (16 + 4) + 4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["open_loop/image/psnr"] for line in lines if "open_loop/image/psnr" in line}
    assert sorted(logged) == [3, 6] and all(np.isfinite(list(logged.values())))


def test_what_a_probe_reads_is_logged_at_its_interval(toy_config, tmp_path):
    config = load_config(
        toy_config, [f"data.path={tmp_path}/data", "training.video_every=0", "training.probe_every=2"]
    )
    run = train(config, tmp_path / "run", [ProbeCallback(episodes=10, context=2)], progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if any(name.startswith("probe/") for name in line)}
    assert sorted(logged) == [2, 4, 6]
    reading = probes.open_truth(config, run.spec, 10, 2).read(run.model, run.variables, config.seed)
    expected = probes.fit_linear(reading)
    assert {name for name in logged[6] if name.startswith("probe/")} == {f"probe/{name}" for name in expected}
    assert expected["position"] == logged[6]["probe/position"]


def test_without_held_out_episodes_nothing_is_drawn(toy_config, tmp_path):
    config = load_config(toy_config, [f"data.path={tmp_path}/none"])

    class Event:
        name, step, run_dir = "video", 3, tmp_path

    Event.config = config
    VideoCallback()(Event)
    assert not list(tmp_path.iterdir())
