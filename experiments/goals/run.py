"""Planning to what is seen in a goal picture, in representations; adds what it measured to `results.json`.

    python experiments/goals/run.py rooms --runs RUNS --data data/rooms_pixels
    python experiments/goals/run.py reach --runs RUNS --data data/reach_pixels

Trains the models of each row (or goes on where they stopped) and plays episodes whose goal is a picture. Rows that are
in `results.json` already are not done again. `rooms`: a door to pass; what each term of the loss is for; worlds that
look otherwise than those of the training. `reach`: an arm that pushes a puck, by three families, in endless variation.
"""

import argparse
import dataclasses
import json
import pathlib

import jax

import jaxwm
from experiments.record import head, read, write
from jaxwm.config import build_world
from jaxwm.evaluation import clips, control, planners

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a configuration, what differs from it, and how the world that is played in differs."""

    config: str
    model: tuple[str, ...] = ()
    world: tuple[tuple[str, object], ...] = ()
    seeds: int = 3


WITHOUT = ("inverse", "variance", "covariance", "similarity")
OTHERWISE = {
    "background": (("background", (60, 40, 40)),),
    "larger agent": (("radius", 0.055),),
    "smaller agent": (("radius", 0.03),),
    "door at the top": (("door_centre", (0.1, 0.15)),),
}
ROWS = {
    "rooms": {
        "jepa": Row("jepa_rooms"),
        **{f"without {term}": Row("jepa_rooms", (f"model.{term}_scale=0",), seeds=1) for term in WITHOUT},
        **{f"other {name}": Row("jepa_rooms", world=changes) for name, changes in OTHERWISE.items()},
    },
    "reach": {
        **{family: Row(f"{family}_reach", seeds=1) for family in ("jepa", "rssm", "byol")},
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
    parts, alone = [], {}
    trained_as = "_".join([row.config, *(text.split(".")[-1] for text in row.model)])
    for seed in range(row.seeds):
        overrides = [f"seed={seed}", f"data.path={arguments.data}", *row.model]
        run = jaxwm.train(
            jaxwm.load_config(CONFIGS / f"{row.config}.yaml", overrides), arguments.runs / f"{trained_as}_{seed}"
        )
        agent, environments = planners.planning_agent(run), planners.run_environments(run)
        if row.world:
            world = {**run.config.data.generate.world.model_dump(), **dict(row.world)}
            environments = dataclasses.replace(
                environments, world=build_world(run.config.data.generate.world.model_copy(update=world))
            )
        key, count = jax.random.key(1000 + seed), arguments.episodes
        planned = control.evaluate_planning(
            agent, run.variables, key, environments, count, batch=count, goals=planners.run_goals(run), shown=8
        )
        print(name, "seed", seed, planned.scores.success, flush=True)
        parts.append(planned.scores)
        if seed == 0 and not row.world and not row.model:
            clips.write_video(HERE / f"{trained_as}.gif", planned.film(environments.world, 64))
            scores = control.evaluate_planning(
                agent, run.variables, jax.random.key(7), environments, 8, batch=1, shown=1
            ).scores
            alone = {
                "ms_per_plan_alone": scores.plan_milliseconds,
                "planning_seconds_per_episode_alone": scores.planning_seconds,
            }
    return control.pool(parts) | alone


if __name__ == "__main__":
    main()
