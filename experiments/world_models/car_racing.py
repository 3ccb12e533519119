"""World Models 2018 on Gymnasium's CarRacing-v3, as far as two cores come; adds what it measured to `car_racing.json`.

    jaxwm data record CarRacing-v3 --out data/car_racing --train 200 --test 8 --max-length 400
    python experiments/world_models/car_racing.py --run runs/car_racing --data data/car_racing

Unlike the paper's, whose controller of CarRacing evolved in the environment itself, this one has lived in the dream
alone. Trains the two stages for a fraction of the steps of the configuration, evolves a controller at each temperature
and drives with it, beside random actions and a car that does nothing. Everything goes on where it was stopped.
"""

import argparse
import contextlib
import pathlib

import jax
import numpy as np

import jaxwm
from experiments.record import head, read, write
from experiments.world_models.run import CONFIGS, HERE, summary
from jaxwm.agents import evolution
from jaxwm.envs import GymnasiumEnvironments

TEMPERATURES = (1.0, 1.3)
STEPS = {"vae": 1300, "dynamics": 2000}
HORIZON, GENERATIONS, EPISODES = 400, 60, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True, help="the run folder, outside the work tree")
    parser.add_argument("--data", required=True, help="the recorded episodes")
    arguments = parser.parse_args()
    steps = [f"stages.{name}.steps={count}" for name, count in STEPS.items()]
    config = jaxwm.load_config(CONFIGS / "mdn_rnn_car_racing.yaml", [f"data.path={arguments.data}", *steps])
    run = jaxwm.train(config, arguments.run)
    path = HERE / "car_racing.json"
    results = read(path)
    facts = {"seed": config.seed, "steps": STEPS, "horizon": HORIZON, "generations": GENERATIONS}
    results |= head("python experiments/world_models/car_racing.py --run RUN --data DATA", **facts)
    for temperature in TEMPERATURES:
        if f"temperature {temperature}" in results:
            continue
        settings = config.evolution.model_copy(
            update={"temperature": temperature, "horizon": HORIZON, "generations": GENERATIONS}
        )
        folder = arguments.run / f"evolution_{temperature}"
        evolution.evolve_run(run, folder, settings, log=lambda line: print(line, flush=True))
        agent, params = evolution.load_controller(run, folder)
        scores = evolution.score_controller(run, agent, params, settings, EPISODES)
        results[f"temperature {temperature}"] = {name: summary(scores[name]) for name in ("dream", "world")}
        write(path, results)
    for name, drive in {"random": lambda rng: rng.uniform([-1, 0, 0], 1), "nothing": lambda rng: np.zeros(3)}.items():
        if name not in results:
            results[name] = summary(played(drive))
            write(path, results)
    print(path.read_text())


def played(drive) -> list[float]:
    """Scores of `EPISODES` episodes in the environment, cut like those of the controllers."""
    rng, scores = np.random.default_rng(1), []
    with contextlib.closing(GymnasiumEnvironments("CarRacing-v3", 1, max_length=HORIZON + 1)) as environments:
        step, total = environments.reset(1), 0.0
        while len(scores) < EPISODES:
            step = environments.step(np.asarray(drive(rng), np.float32)[None])
            total += float(step.reward[0])
            if bool(step.is_last[0]):
                scores.append(total)
                total = 0.0
    return scores


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
