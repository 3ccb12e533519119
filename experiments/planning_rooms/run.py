"""Planning to goals in another room, in learned models; adds what it measured to `results.json` beside itself.

    python experiments/planning_rooms/run.py --runs runs/planning_rooms --data data/rooms_state

Trains a model for each seed (or goes on where it stopped), plays with the planner of the configuration and then with
each other solver, and measures the time of a single plan. Rows that are in `results.json` already are not done again;
with ``--again`` their times are, which a busy machine spoils.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxwm
from experiments.record import head, read, write
from jaxwm.evaluation import clips, control, planners
from jaxwm.planning import PlanningAgent

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "simple_rooms.yaml"
TABLE = {
    "icem": [],
    "cem": [],
    "mppi": ["planning.solver.temperature=0.5", "planning.solver.colour=2.0"],
    "predictive_sampling": ["planning.solver.samples=512", "planning.solver.knots=6", "planning.solver.std=1.0"],
    "random_shooting": ["planning.solver.samples=512"],
    "gradient": ["planning.solver.starts=8", "planning.solver.iterations=20"],
}
"""Each solver with what differs from the configuration; about as many imagined steps for each."""
DIRECT = ["planning.objective={away: {kind: goal, space: position, over: sum}}"]
"""The objective that looks natural: the sum of the straight distances."""


@dataclasses.dataclass(frozen=True)
class Simulator:
    """The world itself behind the contract of a model: what planning would reach without any error of the model."""

    world: jaxwm.worlds.Rooms
    stages = ()

    @property
    def spec(self):
        """What the world shows and takes."""
        return self.world.spec

    def init_state(self, batch_size):
        """States of nothing."""
        state = jax.eval_shape(self.world.reset, jax.random.key(0))
        return jax.tree.map(lambda x: jnp.zeros((batch_size, *x.shape), x.dtype), state)

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        """Puts the dot and the door where they are seen."""
        return dataclasses.replace(state, position=observation["position"], door=observation["door"][:, 0])

    def predict(self, variables, keys, state, action, condition=None):
        """A step of the world."""
        return jax.vmap(self.world.step)(keys, state, action).state

    def features(self, variables, state):
        """Where the dot is."""
        return state.position

    def decode(self, variables, state):
        """What is seen."""
        return jaxwm.Prediction({"position": state.position, "door": state.door[:, None]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="a folder outside the work tree")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="where the episodes are or will be")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=70, help="for each seed")
    parser.add_argument("--only", nargs="*", default=[*TABLE, "sum of distances", "simulator"], help="rows to make")
    parser.add_argument("--again", action="store_true", help="only times a single plan, of rows that are there")
    arguments = parser.parse_args()
    path = HERE / "results.json"
    results = read(path) or {"rows": {}}
    runs = []
    for seed in range(arguments.seeds):
        config = jaxwm.load_config(CONFIG, [f"seed={seed}", f"data.path={arguments.data}"])
        runs.append(jaxwm.train(config, arguments.runs / f"seed{seed}"))
    results |= head(
        "python experiments/planning_rooms/run.py --runs runs/planning_rooms --data data/rooms_state",
        configuration=CONFIG.name,
        steps=runs[0].step,
        parameters=sum(x.size for x in jax.tree.leaves(runs[0].variables["params"])),
    )
    for row in arguments.only:
        if row not in results["rows"]:
            results["rows"][row] = measure(row, runs, arguments.episodes) | time_alone(row, runs[0])
        elif arguments.again:
            results["rows"][row] |= time_alone(row, runs[0])
        write(path, results)
        print(row, json.dumps({k: v for k, v in results["rows"][row].items() if k not in ("seeds", "planner")}))


def measure(row, runs, episodes):
    """Success over all seeds, and the time of a plan for many episodes at once."""
    parts = []
    for seed, run in enumerate(runs):
        agent, run = make_agent(row, run)
        environments = planners.run_environments(run)
        key = jax.random.key(1000 + seed)
        planned = control.evaluate_planning(
            agent, run.variables, key, environments, episodes, batch=episodes, shown=min(episodes, 16)
        )
        print(row, "seed", seed, planned.scores.success, flush=True)
        parts.append(planned.scores)
        if seed == 0 and row == "icem":
            clips.write_video(HERE / "episodes.gif", planned.film(environments.world, 64))
            draw(planned, environments.world, HERE / "ways.png")
    return control.pool(parts)


def time_alone(row, run):
    """The time of a plan, and of all plans of an episode, for one episode at a time."""
    agent, run = make_agent(row, run)
    environments, key = planners.run_environments(run), jax.random.key(7)
    alone = control.evaluate_planning(agent, run.variables, key, environments, 8, batch=1, shown=1).scores
    return {
        "ms_per_plan_alone": alone.plan_milliseconds,
        "planning_seconds_per_episode_alone": alone.planning_seconds,
    }


def make_agent(row, run):
    """The planner of a row of the table, and the run with its configuration."""
    if row in TABLE:
        run = planners.configure_planning(run, TABLE[row], solver=row)
    elif row == "sum of distances":
        run = planners.configure_planning(run, DIRECT)
    agent = planners.planning_agent(run)
    if row == "simulator":
        agent = PlanningAgent(
            Simulator(planners.run_environments(run).world), agent.objective, agent.solver, agent.every
        )
    return agent, run


def draw(planned, world, path, columns=8):
    """The ways of some episodes, from the red dot to the ring."""
    count = min(16, len(planned.ends))
    figure, axes = plt.subplots(-(-count // columns), columns, figsize=(1.6 * columns, 1.6 * -(-count // columns)))
    for row, axis in enumerate(np.ravel(axes)[:count]):
        states = jax.tree.map(lambda x, row=row: x[: planned.ends[row] + 1, row], planned.states)
        shown = dataclasses.replace(world, observe="pixels", show_goal=True)
        axis.imshow(np.asarray(shown.render(jax.tree.map(lambda x: x[0], states), 96)), extent=(0, 1, 1, 0))
        axis.plot(*np.asarray(states.position).T, color="white", marker=".", lw=1, ms=3)
        axis.set_axis_off()
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
