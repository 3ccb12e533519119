"""World Models 2018 on `dodge`: controllers that have only dreamt, by temperature, against chance and ablations.

    python experiments/world_models/run.py --run runs/dodge                     # everything, one part after the other
    python experiments/world_models/run.py temperatures --run runs/dodge        # one part
    python experiments/world_models/run.py correlation --run runs/rssm_dodge --config rssm_dodge    # another family

Everything goes on where it was stopped: the model in the run folder, each evolution in a folder below it. What was
measured is added to `results.json`.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import jaxwm
from experiments.record import head, read, write
from jaxwm.acting import PolicyAgent, play_world
from jaxwm.agents import evolution
from jaxwm.bench import matrix_peak
from jaxwm.config import build_world
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.evaluation import clips
from jaxwm.worlds import make_policy, random_policy
from jaxwm.worlds.base import uniform_action

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)
EPISODES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--run", type=pathlib.Path, required=True, help="the run folder, outside the work tree")
    parser.add_argument("--config", default="mdn_rnn_dodge", help="in configs/")
    parser.add_argument("--data", help="another folder for the episodes")
    parser.add_argument("--trained", action="store_true", help="takes the run as it is")
    parser.add_argument("--seeds", type=int, default=1, help="evolutions at each temperature")
    parser.add_argument("--only", type=float, nargs="*", default=TEMPERATURES, help="temperatures")
    arguments = parser.parse_intermixed_args()
    config = jaxwm.load_config(
        CONFIGS / f"{arguments.config}.yaml", [f"data.path={arguments.data}"] if arguments.data else []
    )
    run = jaxwm.load_run(arguments.run) if arguments.trained else jaxwm.train(config, arguments.run)
    for part in arguments.parts or PARTS:
        record(part, PARTS[part](run, arguments), run)


def record(part, result, run):
    """Adds what was measured; a part that is measured again keeps the entries that were not."""
    path = HERE / "results.json"
    results = read(path)
    result = {**results.get(part, {}), **result}
    results[part] = {**result, **head(f"python experiments/world_models/run.py {part}", seed=run.config.seed)}
    write(path, results)
    print(json.dumps(result, indent=1))


def summary(scores):
    """Mean, standard deviation, number, and the 95% interval of the mean by its standard error."""
    scores = np.asarray(scores, np.float64)
    half = 1.96 * scores.std(ddof=1) / np.sqrt(len(scores))
    figures = {"mean": scores.mean(), "std": scores.std(ddof=1), "interval": half}
    return {name: round(float(value), 2) for name, value in figures.items()} | {"episodes": len(scores)}


def baselines(run, arguments):
    """What chance and a scripted player that sees the physical state score in the real world."""
    world, horizon = build_world(run.config.data.generate.world), run.config.evolution.horizon
    uniform = lambda world, key, state: uniform_action(world.spec.action, key)  # noqa: E731
    policies = {"random": random_policy, "uniform": uniform, "step_aside": make_policy("dodge", "step_aside")}
    score = lambda policy: evolution.policy_scores(world, policy, jax.random.key(7), horizon, EPISODES)  # noqa: E731
    return {name: summary(score(policy)) for name, policy in policies.items()}


def temperatures(run, arguments):
    """Dream score and real score of the controllers that evolve at each temperature."""
    table = {}
    for seed in range(arguments.seeds):
        for temperature in arguments.only:
            settings = run.config.evolution.model_copy(update={"temperature": temperature, "seed": seed})
            folder = arguments.run / f"evolution_{temperature}_{seed}"
            evolved = evolution.evolve_run(run, folder, settings, log=lambda line: print(line, flush=True))
            agent, params = evolution.load_controller(run, folder)
            scores = evolution.score_controller(run, agent, params, settings, EPISODES)
            entry = {name: summary(scores[name]) for name in ("dream", "world")}
            entry["generations"] = len(evolved.history)
            table[f"{temperature}/{seed}"] = entry
            record("temperatures", table, run)
    return table


def untrained(run):
    """The variables of ``run`` with a memory that has learned nothing."""
    first = jaxwm.example_batch(run.spec, 1, 2)
    fresh = jax.jit(run.model.init)(jax.random.key(99), first)["params"]
    names = run.model.stages[1].trainable
    return {**run.variables, "params": {**run.variables["params"], **{name: fresh[name] for name in names}}}


@dataclasses.dataclass(frozen=True)
class WithoutMemory(evolution.LinearController):
    """Sees the latent of the frame alone."""

    latent: int = 0

    def __call__(self, params, keys, features, policy_state):
        """As its base class, but for what the memory says."""
        return super().__call__(params, keys, features.at[:, self.latent :].set(0.0), policy_state)


def ablations(run, arguments):
    """An untrained memory, in the dream and as features in the real world; and a controller without memory."""
    settings = run.config.evolution
    world = build_world(run.config.data.generate.world)
    environments = WorldEnvironments(world, settings.horizon + 1)
    controller = evolution.LinearController(run.spec.action)
    blind = WithoutMemory(run.spec.action, run.model.latent)
    raw = dataclasses.replace(run, variables=untrained(run))
    in_world = settings.model_copy(update={"population": 32, "generations": 16})
    table = {}

    def real(variables, policy, params):
        agent = PolicyAgent(run.model, policy)
        return play_world(agent, (variables, params), jax.random.key(11), environments, EPISODES).score

    def dream(name, source, policy):
        trials, params = evolution.dream_trials(run.model, source.variables, settings)
        trials = dataclasses.replace(trials, policy=policy)
        inputs = (source.variables, evolution.dream_starts(source, settings.starts), jnp.float32(settings.temperature))
        folder = arguments.run / f"ablation_{name}"
        evolved = evolution.evolve(trials, inputs, params, settings, folder, log=lambda line: print(line, flush=True))
        table[name] = summary(real(source.variables, policy, evolved.params)) | {"evolved": "in the dream"}
        record("ablations", table, run)

    def outside(name, source):
        trials = evolution.WorldTrials(PolicyAgent(run.model, controller), environments, 8)
        params = evolution.dream_trials(run.model, source.variables, settings)[1]
        folder = arguments.run / f"ablation_{name}"
        log = lambda line: print(line, flush=True)  # noqa: E731
        evolved = evolution.evolve(trials, source.variables, params, in_world, folder, log=log)
        table[name] = summary(real(source.variables, controller, evolved.params)) | {"evolved": "in the real world"}
        record("ablations", table, run)

    dream("dream_untrained_memory", raw, controller)
    dream("dream_without_memory", run, blind)
    outside("world_untrained_memory", raw)
    outside("world_trained_memory", run)
    return table


def correlation(run, arguments):
    """Spearman's rank correlation of dream and real returns over controllers of different quality."""
    settings, folder = run.config.evolution, arguments.run / f"evolution_{run.config.evolution.temperature}_0"
    evolution.evolve_run(run, folder, settings, log=lambda line: print(line, flush=True))
    agent, (variables, best) = evolution.load_controller(run, folder)
    size = float(jnp.sqrt(jnp.mean(jnp.square(best["kernel"]))))
    returns = {"dream": [], "world": []}
    # From the best controller to one that is mostly noise: policies that differ by more than chance.
    for index, share in enumerate(np.linspace(0, 3, 24)):
        noise = jax.random.split(jax.random.key(index))
        params = {
            name: value + share * size * jax.random.normal(key, value.shape)
            for (name, value), key in zip(sorted(best.items()), noise, strict=True)
        }
        scores = evolution.score_controller(run, agent, (variables, params), settings, 3 * EPISODES)
        for name in returns:
            returns[name].append(round(float(scores[name].mean()), 2))
    ranks = [scipy.stats.rankdata(values) for values in returns.values()]
    found = {"spearman": round(float(np.corrcoef(*ranks)[0, 1]), 3), "policies": len(returns["dream"]), **returns}
    found |= {"episodes_each": 3 * EPISODES}
    return {run.config.model.family: found | {"configuration": f"{arguments.config}.yaml"}}


def speed(run, arguments):
    """Dream steps in a second of the trials of a generation, controllers included."""
    sizes = {
        "dodge": {},
        "paper_car_racing": {"latent": 32, "hidden": 256},
        "paper_doom": {"latent": 64, "hidden": 512},
    }
    table = {}
    for name, size in sizes.items():
        model = dataclasses.replace(run.model, **size)
        variables = run.variables
        if size:
            variables = jax.jit(model.init)(jax.random.key(0), jaxwm.example_batch(run.spec, 1, 2))
        # A dream that ends ends the count: here none does, and all rows are alive in every step.
        done = {"kernel": variables["params"]["done"]["kernel"] * 0, "bias": jnp.full(1, -30.0)}
        variables = {**variables, "params": {**variables["params"], "done": done}}
        settings = run.config.evolution.model_copy(
            update={"horizon": 100, "generations": 4, "checkpoint_every": 100, "strategy": "sep_cma_es"}
        )
        trials, params = evolution.dream_trials(model, variables, settings)
        inputs = (variables, model.init_state(settings.starts), jnp.float32(1.0))
        rows = settings.population * settings.dreams
        candidates = jax.tree.map(
            lambda x, n=settings.population: 0.1 * jax.random.normal(jax.random.key(1), (n, *x.shape)), params
        )
        play = jax.jit(trials.play)
        assert int(play(inputs, candidates, jax.random.key(0))[2]) == settings.horizon
        times, peaks = [], []
        for repetition in range(5):
            peaks.append(matrix_peak(0.5))
            begin = time.perf_counter()
            jax.block_until_ready(play(inputs, candidates, jax.random.key(repetition)))
            times.append(time.perf_counter() - begin)
        taken = statistics.median(times)
        table[name] = {
            "latent": model.latent,
            "hidden": model.hidden,
            "dreams_at_once": rows,
            "steps_per_second": round(rows * settings.horizon / taken),
            "fastest": round(rows * settings.horizon / min(times)),
            "gemm_gflops": round(statistics.median(peaks), 1),
        }
    return table


def picture(run, arguments):
    """A dream beside reality, both lived through by the same controller from the same first frame."""
    settings, length = run.config.evolution, 80
    agent, params = evolution.load_controller(run, arguments.run / f"evolution_{settings.temperature}_0")
    world = build_world(run.config.data.generate.world)
    played = play_world(agent, params, jax.random.key(3), WorldEnvironments(world, length), 8, record=True)
    row = int(np.argmax(played.length))
    episode = jax.tree.map(lambda x: x[row : row + 1], played.trajectory)
    first = episode.replace(
        **{name: getattr(episode, name)[:, :1] for name in ("action", "reward", "is_first", "is_last", "is_terminal")},
        **{name: getattr(episode, name)[:, :1] for name in ("valid", "action_valid")},
        observation={"image": episode.observation["image"][:, :1]},
        info={},
    )
    state = jaxwm.observe_sequence(run.model, run.variables, jax.random.key(0), first).final_state
    dream = jaxwm.imagine(
        run.model, run.variables, jax.random.key(5), state, policy=agent.policy, policy_params=params[1],
        horizon=length - 1, decode=True, condition={"temperature": jnp.full(1, settings.temperature)},
    )  # fmt: skip
    columns = {"columns": 10, "scale": 2}
    sheets = [
        clips.contact_sheet(None, images, context, **columns)
        for images, context in (
            (episode.observation["image"][0], length),
            (dream.prediction.observation["image"][0], 1),
        )
    ]
    clips.write_image(HERE / "dream_beside_reality.png", np.concatenate(sheets, axis=0))
    return {"frames": length, "real_length": int(played.length[row])}


PARTS = {
    "baselines": baselines,
    "temperatures": temperatures,
    "ablations": ablations,
    "correlation": correlation,
    "speed": speed,
    "picture": picture,
}

if __name__ == "__main__":
    main()
