"""Videos and figures while a model trains."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from jaxwm.config import load_config
from jaxwm.evaluation import VideoCallback
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


def test_without_held_out_episodes_nothing_is_drawn(toy_config, tmp_path):
    config = load_config(toy_config, [f"data.path={tmp_path}/none"])

    class Event:
        name, step, run_dir = "video", 3, tmp_path

    Event.config = config
    VideoCallback()(Event)
    assert not list(tmp_path.iterdir())
