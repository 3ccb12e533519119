"""What disagreement is good for: plans that stay where the models hold, and actions that lead to what none knows.

    python experiments/uncertainty/run.py --run runs/ensemble_rooms [penalty] [calibration] [exploration]

Adds what it measured to `results.json` beside itself.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import jaxwm
from experiments.record import head, read, write
from jaxwm.evaluation import control, planners, wilson_interval
from jaxwm.worlds import random_policy, rollout, rush

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "ensemble_rooms.yaml"
WEIGHTS = (0.0, 30.0, 300.0, 3000.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--run", type=pathlib.Path, required=True, help="the run folder, outside the work tree")
    parser.add_argument("--data", help="another folder for the episodes")
    parser.add_argument("--episodes", type=int, default=70)
    arguments = parser.parse_intermixed_args()
    config = jaxwm.load_config(CONFIG, [f"data.path={arguments.data}"] if arguments.data else [])
    run = jaxwm.train(config, arguments.run)
    for part in arguments.parts or PARTS:
        result = PARTS[part](run, arguments)
        path = HERE / "results.json"
        results = read(path)
        about = head(f"python experiments/uncertainty/run.py {part}", seed=config.seed, steps=run.step)
        results[part] = result | about
        write(path, results)
        print(json.dumps(result, indent=1))


def one_member(run):
    """The first member alone, as a run."""
    variables = jax.tree.map(lambda x: x[0], run.variables)
    return dataclasses.replace(run, model=run.model.member, variables=variables)


def penalty(run, arguments):
    """Success of planning by the weight of the disagreement, and with one of the models alone."""

    def success(run, overrides):
        run = planners.configure_planning(run, overrides)
        planned = control.evaluate_planning(
            planners.planning_agent(run), run.variables, jax.random.key(1000), planners.run_environments(run),
            arguments.episodes, batch=arguments.episodes,
        )  # fmt: skip
        scores = planned.scores
        hits = round(scores.success * scores.episodes)
        print(overrides, scores.success, flush=True)
        return {
            "success": scores.success,
            "interval": wilson_interval(hits, scores.episodes),
            "episodes": scores.episodes,
        }

    away = "planning.objective={away: {kind: goal, space: position, over: sum, width: 0.1}, "
    away += "end: {kind: goal, space: position, over: last}}"
    table = {"one model": success(one_member(run), [away])}
    for weight in WEIGHTS:
        table[f"weight {weight:g}"] = success(run, [f"planning.objective.doubt.weight={weight}"])
    return {"rows": table}


def dreams(run, policy, horizon, count, seed):
    """Disagreement and error of the mean ``[count, horizon]`` along real actions of ``policy`` that were not shown."""
    world = planners.run_environments(run).world
    keys = jax.random.split(jax.random.key(seed), count)
    real = jax.jit(jax.vmap(lambda key: rollout(world, key, horizon + 1, policy)))(keys)
    first = {name: value[:, 0] for name, value in real.observation.items()}
    state = run.model.observe(
        run.variables, keys, run.model.init_state(count), jnp.zeros((count, 2)), first, jnp.ones(count, bool)
    )
    dream = jaxwm.imagine(run.model, run.variables, keys[0], state, real.action[:, :horizon], decode=True)
    error = jnp.linalg.norm(dream.prediction.observation["position"] - real.observation["position"], axis=-1)
    return np.asarray(dream.prediction.uncertainty[:, 1:]), np.asarray(error[:, 1:])


def calibration(run, arguments):
    """Whether the members disagree where they are wrong: over dreams, and between known and new behaviour."""
    known, known_error = dreams(run, random_policy, 20, 512, 1)
    new, new_error = dreams(run, rush, 20, 512, 2)
    doubt, error = np.concatenate([known, new])[:, -1], np.concatenate([known_error, new_error])[:, -1]
    ranks = scipy.stats.rankdata(np.concatenate([known[:, -1], new[:, -1]]))
    above = (ranks[512:].sum() - 512 * 513 / 2) / 512**2
    return {
        "spearman_of_disagreement_and_error": round(float(scipy.stats.spearmanr(doubt, error).statistic), 3),
        "error_by_quarter_of_disagreement": [
            round(float(error[part].mean()), 4) for part in np.array_split(np.argsort(doubt), 4)
        ],
        "auroc_new_behaviour": round(float(above), 3),
        "mean_error": {
            "random": round(float(known_error[:, -1].mean()), 4),
            "rush": round(float(new_error[:, -1].mean()), 4),
        },
        "horizon": 20,
        "dreams": 1024,
    }


def exploration(run, arguments):
    """How often the dot pushes against the wall between the rooms when it looks for disagreement."""
    environments = planners.run_environments(run)
    bonus = planners.configure_planning(run, ["planning.objective={new: {kind: uncertainty, weight: -1.0}}"])

    def share(states, valid):
        beside = jnp.abs(jnp.abs(states.position[..., 0] - 0.5) - (0.5 - environments.world._face_left)) < 1e-5
        return float((np.asarray(beside) & valid).sum() / valid.sum())

    planned = control.evaluate_planning(
        planners.planning_agent(bonus), run.variables, jax.random.key(5), environments, 32, batch=32, shown=32
    )
    frames = np.arange(planned.states.position.shape[0])[:, None]
    curious = share(planned.states, frames <= planned.ends[None])
    keys = jax.random.split(jax.random.key(6), 256)
    played = jax.jit(jax.vmap(lambda key: rollout(environments.world, key, 64, random_policy)))(keys)
    positions = dataclasses.replace(planned.states, position=jnp.asarray(played.info["position"]))
    return {
        "at_the_wall_share": {"curious": round(curious, 3), "random": round(share(positions, played.valid), 3)},
        "episodes": {"curious": 32, "random": 256},
    }


PARTS = {"penalty": penalty, "calibration": calibration, "exploration": exploration}

if __name__ == "__main__":
    main()
