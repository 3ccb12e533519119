"""Planning to what is seen in a goal picture, in representations; adds what it measured to `results.json`.

    python experiments/goals/run.py rooms --runs RUNS --data data/rooms_pixels
    python experiments/goals/run.py reach --runs RUNS --data data/reach_pixels

Trains the models of each row (or goes on where they stopped) and plays episodes whose goal is a picture. Rows that are
in `results.json` already are not done again. `rooms`: a door to pass; what each term of the loss is for; worlds that
look otherwise than those of the training. `reach`: an arm that goes to a place, by three families and in other arms
and colours; and one that pushes a puck there, also by three families and over other tables.
"""

import argparse
import dataclasses
import json
import pathlib

import jax

import jaxwm
from experiments.record import head, read, write
from jaxwm.agents.evolution import policy_scores
from jaxwm.config import build_world
from jaxwm.evaluation import clips, control, planners
from jaxwm.worlds import random_policy

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a configuration, what differs from it, and how the world that is played in differs.

    Attributes:
      config: in configs/.
      model: overrides of the model.
      planner: overrides of the planner, which need no other training.
      world: parameters of the world that is played in; that of the training stays as it is.
      learned: whether the model has been trained in that world too.
      data: put behind the folder of the episodes, for rows that learn from others.
      seeds: trainings.
    """

    config: str
    model: tuple[str, ...] = ()
    planner: tuple[str, ...] = ()
    world: tuple[tuple[str, object], ...] = ()
    learned: bool = False
    data: str = ""
    seeds: int = 3


WITHOUT = ("inverse", "variance", "covariance", "similarity")
OTHERWISE = {
    "background": (("background", (60, 40, 40)),),
    "larger agent": (("radius", 0.055),),
    "smaller agent": (("radius", 0.03),),
    "door at the top": (("door_centre", (0.1, 0.15)),),
}
COLOURS = (("background", ((15, 18, 26), (90, 100, 130))), ("arm_colour", ((110, 120, 140), (230, 200, 220))))
ARMS = (("upper_arm", (0.45, 0.6)), ("forearm", (0.45, 0.6)))
FRICTION = (("friction", (1.0, 4.0)),)
SELDOM = ("planning.every=2", "planning.solver.horizon=10")
PICTURES = tuple(
    f"planning.{setting}"
    for setting in (
        "solver.samples=64", "solver.elites=8", "solver.iterations=4",
        "objective.away.space=image", "objective.away.distance=l2",
    )
)  # fmt: skip
ROWS = {
    "rooms": {
        "jepa": Row("jepa_rooms"),
        **{f"without {term}": Row("jepa_rooms", (f"model.{term}_scale=0",), seeds=1) for term in WITHOUT},
        **{f"other {name}": Row("jepa_rooms", world=changes) for name, changes in OTHERWISE.items()},
    },
    "reach": {
        **{family: Row(f"{family}_reach", seeds=1) for family in ("jepa", "rssm", "byol")},
        "other arms": Row("jepa_reach", world=ARMS, seeds=1),
        "other colours": Row("jepa_reach", world=COLOURS, seeds=1),
        "other arms and colours": Row("jepa_reach", world=ARMS + COLOURS, seeds=1),
        "trained in other arms and colours": Row(
            "jepa_reach", world=ARMS + COLOURS, learned=True, data="_varied", seeds=1
        ),
        **{f"push, {family}": Row(f"{family}_push", data="_push", seeds=1) for family in ("jepa", "rssm", "byol")},
        "push, jepa, plans for every second action": Row("jepa_push", planner=SELDOM, data="_push", seeds=1),
        "push, rssm, by painted pictures": Row("rssm_push", planner=PICTURES, data="_push", seeds=1),
        "push, other friction": Row("jepa_push", world=FRICTION, data="_push", seeds=1),
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=ROWS)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="a folder outside the work tree")
    parser.add_argument("--data", required=True, help="where the episodes are or will be")
    parser.add_argument("--only", nargs="*", help="rows to make")
    parser.add_argument("--episodes", type=int, default=70, help="for each seed")
    arguments = parser.parse_args()
    path = HERE / "results.json"
    results = read(path)
    results |= head("python experiments/goals/run.py rooms|reach --runs RUNS --data DATA")
    table = results.setdefault(arguments.world, {})
    for name in arguments.only or ROWS[arguments.world]:
        row = ROWS[arguments.world][name]
        if name not in table:
            table[name] = measure(name, row, arguments)
            write(path, results)
        print(name, json.dumps({k: v for k, v in table[name].items() if k != "planner"}), flush=True)


def measure(name, row, arguments):
    """Success over all seeds of a row, and for the plain ones the time of planning for one episode alone."""
    parts, chance, alone = [], [], {}
    trained_as = "_".join([row.config, *(text.split(".")[-1] for text in row.model), *(["varied"] * row.learned)])
    for seed in range(row.seeds):
        overrides = [f"seed={seed}", f"data.path={arguments.data}{row.data}", *row.model]
        if row.learned:
            overrides += [f"data.generate.world.{key}={json.dumps(value)}" for key, value in row.world]
        run = jaxwm.train(
            jaxwm.load_config(CONFIGS / f"{row.config}.yaml", overrides), arguments.runs / f"{trained_as}_{seed}"
        )
        run = planners.configure_planning(run, row.planner)
        agent, environments = planners.planning_agent(run), planners.run_environments(run)
        source = run.config.data.generate.world
        world = build_world(source.model_copy(update={**source.model_dump(), **dict(row.world)}))
        environments = dataclasses.replace(environments, world=world)
        key, count = jax.random.key(1000 + seed), arguments.episodes
        planned = control.evaluate_planning(
            agent,
            run.variables,
            key,
            environments,
            count,
            batch=min(count, 70),
            goals=planners.run_goals(run),
            shown=8,
        )
        print(name, "seed", seed, planned.scores.success, flush=True)
        parts.append(planned.scores)
        frames = environments.length * run.config.data.frame_skip
        chance.append(float((policy_scores(world, random_policy, key, frames, 200) > 0).mean()))
        if seed == 0 and not row.world and not row.model:
            if row.config in ("jepa_rooms", "jepa_reach"):  # those that the README shows
                clips.write_video(HERE / f"{trained_as}.gif", planned.film(environments.world, 64))
            scores = control.evaluate_planning(
                agent, run.variables, jax.random.key(7), environments, 8, batch=1, shown=1
            ).scores
            alone = {
                "ms_per_plan_alone": scores.plan_milliseconds,
                "planning_seconds_per_episode_alone": scores.planning_seconds,
            }
    return control.pool(parts) | {"random_play": sum(chance) / len(chance)} | alone


if __name__ == "__main__":
    main()
