"""What is drawn and measured while a model trains."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax

from jaxwm import data
from jaxwm.evaluation import clips, probes, runs, video
from jaxwm.types import Trajectory

if TYPE_CHECKING:
    from jaxwm.config import Config
    from jaxwm.training.loop import Event


@dataclasses.dataclass
class VideoCallback:
    """For `jaxwm.training.train`: open-loop videos (truth | imagined | error) of held-out episodes, and their scores.

    At every ``video`` event and at the end it writes ``videos/step_00001000.gif`` into the run folder and logs the
    scores of the episodes, averaged over the horizon, as ``open_loop/image/psnr`` and so on. It draws the model's
    mode. Without a held-out split it does nothing.

    Args:
      episodes: how many held-out episodes to score.
      shown: how many of them to draw.
      scale: integer enlargement.
    """

    episodes: int = 16
    shown: int = 4
    scale: int = 2
    _batch: Trajectory | None = dataclasses.field(default=None, init=False, repr=False)

    def __call__(self, event: Event) -> None:
        """Draws and logs at ``video`` and ``end`` events; others are left alone."""
        if event.name not in ("video", "end"):
            return
        if self._batch is None:
            self._batch = self._load(event.config)
        if self._batch is None:
            return
        context = event.config.evaluation.context
        horizon = self._batch.reward.shape[1] - context
        # The same key every time: what changes between two videos is the model.
        key = jax.random.key(event.config.seed)
        rollout = video.predict(event.model, event.variables, key, self._batch, context, horizon, 0.0)
        scores = video.score(rollout)
        event.log({f"open_loop/{name}": value for name, value in scores.means().items()})
        frames = draw(jax.device_get(rollout), self.shown, self.scale)
        if frames is not None:
            clips.write_video(event.run_dir / "videos" / f"step_{event.step:08d}.gif", frames)

    def _load(self, config: Config) -> Trajectory | None:
        """The episodes to predict; the horizon is cut to what they are long enough for."""
        try:
            source = data.open_data(config.data, "test")
        except data.DataError:
            return None
        settings = config.evaluation
        longest = int(source.lengths.max())
        if longest <= settings.context:
            return None
        length = min(settings.context + settings.horizon, longest)
        chosen = runs.longest_first(source, self.episodes, length)
        return source.windows(chosen, [0] * len(chosen), length)


@dataclasses.dataclass
class ProbeCallback:
    """For `jaxwm.training.train`: what a linear probe reads of the physical truth; see `jaxwm.evaluation.probe_run`.

    At every ``probe`` event and, where ``training.probe_every`` asks for any, at the end it logs R^2 on held-out
    episodes as ``probe/position`` and so on.

    Args:
      episodes: training episodes to fit the probe on.
      context: frames at the beginning of each episode that do not count.

    Raises:
      DataError, ValueError: at the event, if there are no held-out episodes or they hold no physical truth.
    """

    episodes: int = 64
    context: int = 5

    def __call__(self, event: Event) -> None:
        """Probes and logs at ``probe`` and ``end`` events; others are left alone."""
        if event.name not in ("probe", "end") or not event.config.training.probe_every:
            return
        truth = probes.open_truth(event.config, event.model.spec, self.episodes, self.context)
        reading = truth.read(event.model, event.variables, event.config.seed)
        event.log({f"probe/{name}": score for name, score in probes.fit_linear(reading).items()})


def draw(rollout: video.OpenLoop, count: int, scale: int, columns: int = 2) -> clips.Pixels | None:
    """A video of the first ``count`` episodes of ``rollout`` in a grid, or None where there are no pictures."""
    name = clips.drawable(rollout.observation)
    if name is None:
        return None
    truth, imagined = rollout.observation[name], rollout.prediction.observation[name]
    videos = [
        clips.side_by_side(truth[row], imagined[row], rollout.context, scale=scale)
        for row in range(min(count, len(truth)))
    ]
    return clips.tile(videos, min(columns, len(videos)))
