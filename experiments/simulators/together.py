"""The claim about one model for several worlds; see `run.py`."""

import jax

from experiments.simulators.common import held_out
from jaxwm.config import build_world
from jaxwm.evaluation import open_loop, score
from jaxwm.worlds.several import NAMES

CONTEXT, HORIZON, EPISODES = 5, 15, 64
AT = (1, 2, 3, 5, 10, 15)
SHARE = 4
"""The model of one world learns from a share of the episodes, in a share of the updates, of the model of all."""


def table():
    """For `experiments.runs.Runs`: the model of all worlds and that of each, of the same network."""
    found = {"several": ("diffusion_several.yaml", "data_several", [])}
    for name in NAMES:
        found[f"only_{name}"] = (
            "diffusion_several.yaml",
            f"data_{name}",
            [
                f"data.generate.world.names=[{name}]", f"data.generate.train={6000 // SHARE}",
                f"stages.tokenizer.steps={6000 // SHARE}", f"stages.dynamics.steps={12000 // SHARE}",
            ],
        )  # fmt: skip
    return found


def one_for_all(runs):
    """Open-loop PSNR by world: a model of all against one of each, which saw as much of its world as the former."""
    scores = {}
    for name in NAMES:
        single = runs(f"only_{name}")
        batch = held_out(build_world(single.config.data.generate.world), EPISODES, CONTEXT + HORIZON, "random")
        for title, run in (("one for all", runs("several")), ("one for each", single)):
            rollout = open_loop(run.model, run.variables, jax.random.key(0), batch, CONTEXT, HORIZON)
            found = score(rollout).metrics
            scores[f"{name}, {title}"] = at(found["model"])
        scores[f"{name}, last frame"] = at(found["copy"])
    return {"episodes": EPISODES, "horizons": AT, "scores": scores}


def at(metrics):
    """PSNR of the picture and of what changes in it, at `AT`."""
    return {name: [metrics[f"image/{name}"][h - 1] for h in AT] for name in ("psnr", "psnr_changed")}


CLAIMS = {"one_for_all": one_for_all}
