"""Evolution in the dream: a linear controller that has never seen the world it is made for.

The third part of World Models (Ha & Schmidhuber 2018, arXiv:1803.10122): CMA-ES (Hansen 2016, arXiv:1604.00772) moves
the parameters of a linear map from features to actions; thousands of dreams at once, one compiled step a generation.
Any world model with reward and continuation can dream; `WorldTrials` evolves in a simulator instead, to compare.

    run = jaxwm.load_run("runs/dodge")
    agent, params = load_controller(run, "runs/dodge/evolution")
    played = play_world(agent, params, jax.random.key(0), WorldEnvironments(Dodge(), 300), 100)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.acting import PolicyAgent, play, play_world
from jaxwm.config import EvolutionConfig, build_world
from jaxwm.data.episodes import read_header
from jaxwm.data.recording import reopen
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.evaluation.runs import matching_split
from jaxwm.imagination import Policy, observe_sequence, row_keys
from jaxwm.models.base import masked_mean
from jaxwm.training.interruption import Interrupted, Interruption
from jaxwm.types import ActionSpec, Array, PyTree, Variables, WorldModel
from jaxwm.worlds import Policy as WorldPolicy
from jaxwm.worlds import World, random_policy, rollout

if TYPE_CHECKING:
    from jaxwm.training import Run

FILE = "evolution.npz"
"""What an evolution leaves in its folder: the controller, the strategy's state, the history, the settings."""
FIGURES = ("mean", "best", "sigma")
"""What the history holds of each generation: mean and largest return of the population, and the step size."""
_MAY_CHANGE = ("generations", "checkpoint_every")


class EvolutionError(ValueError):
    """An evolution that cannot begin, go on or be read; one line that names what and why."""


@dataclasses.dataclass(frozen=True)
class LinearController:
    """A linear map from features to an action: a `jaxwm.imagination.Policy` without memory.

    Its parameters are ``{"kernel": [F, A], "bias": [A]}``. Of discrete actions the largest output is chosen, others
    are squashed by tanh into their bounds, and unbounded ones are the outputs.

    Args:
      action: what the world takes.
    """

    action: ActionSpec

    def init(self, features: int) -> dict[str, Array]:
        """Zeros, for features of that size."""
        return {"kernel": jnp.zeros((features, self.action.dim)), "bias": jnp.zeros(self.action.dim)}

    def __call__(self, params: PyTree, keys: Array, features: Array, policy_state: PyTree) -> tuple[Array, PyTree]:
        """``features`` ``[B, F]`` to the action ``[B, A]``; nothing is drawn and nothing remembered."""
        output = features @ params["kernel"] + params["bias"]
        if self.action.discrete:
            return jax.nn.one_hot(jnp.argmax(output, axis=-1), self.action.dim), policy_state
        if self.action.low is None:
            return output, policy_state
        return self.action.denormalise(jnp.tanh(output)), policy_state


class Trials(Protocol):
    """What candidates are scored by; frozen, hashable and pure, so that it becomes part of the compiled step."""

    def __call__(self, inputs: PyTree, candidates: PyTree, key: Array) -> Array:
        """Returns ``[P, N]``: those of N trials of each of P candidates, whose parameters are stacked ``[P, ...]``.

        All candidates get the same N trials: the same starts and the same luck, so that they differ by what they do.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DreamTrials:
    """Dreams, in which a return is the sum of predicted rewards until the dream's end is drawn.

    ``inputs`` are (variables of the model, states ``[S, ...]`` to begin in, temperature); of the states each dream
    takes one at random. The end is drawn with the probability that the model gives it, at ``end_odds`` times its odds:
    the paper's dreams end by a logit that was trained with ends weighted by 10.

    Args:
      model: any world model that predicts reward and continuation.
      policy: acts on its features, without memory.
      dreams: N.
      horizon: most steps of a dream.
      end_odds: above 1 the dream is more dangerous than the model believes the world to be.
    """

    model: WorldModel
    policy: Policy
    dreams: int
    horizon: int
    end_odds: float = 1.0

    def __call__(self, inputs: tuple[Variables, PyTree, Array], candidates: PyTree, key: Array) -> Array:
        """See `Trials`."""
        return self.play(inputs, candidates, key)[0]

    def play(
        self, inputs: tuple[Variables, PyTree, Array], candidates: PyTree, key: Array
    ) -> tuple[Array, Array, Array]:
        """Returns ``[P, N]``, lengths ``[P, N]`` int32, and how many steps were dreamt until the last dream ended."""
        variables, starts, temperature = inputs
        count, rows = jax.tree.leaves(candidates)[0].shape[0], self.dreams
        start_key, step_key = jax.random.split(key)
        chosen = jax.random.randint(start_key, (rows,), 0, jax.tree.leaves(starts)[0].shape[0])
        trial_keys = row_keys(step_key, rows)
        controls = {"temperature": jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (count * rows,))}

        def for_all(x: Array) -> Array:
            """``[N, ...]`` for each candidate, ``[P * N, ...]``: the model sees one large batch."""
            return jnp.broadcast_to(x[None], (count, *x.shape)).reshape(count * rows, *x.shape[1:])

        def act(keys: Array, state: PyTree) -> Array:
            features = self.model.features(variables, state).reshape(count, rows, -1)
            actions = jax.vmap(lambda params, x: self.policy(params, keys, x, None)[0])(candidates, features)
            return actions.reshape(count * rows, -1)

        def goes_on(carry: tuple[Array, PyTree, Array, Array, Array]) -> Array:
            t, _, alive, _, _ = carry
            return (t < self.horizon) & jnp.any(alive)

        def step(carry: tuple[Array, PyTree, Array, Array, Array]) -> tuple[Array, PyTree, Array, Array, Array]:
            t, state, alive, total, length = carry
            keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, t), 3))(trial_keys)
            action = act(keys[:, 0], state)
            state = self.model.predict(variables, for_all(keys[:, 1]), state, action, controls)
            # Nothing reads the pictures, so the compiler drops the decoder.
            expected = self.model.decode(variables, state)
            if expected.reward is None or expected.continuation is None:
                lacks = "reward" if expected.reward is None else "continuation"
                raise EvolutionError(f"{type(self.model).__name__} predicts no {lacks}: a dream needs both")
            total += jnp.where(alive, expected.reward, 0.0)
            length += alive
            stays = expected.continuation / (expected.continuation + self.end_odds * (1.0 - expected.continuation))
            alive &= for_all(jax.vmap(jax.random.uniform)(keys[:, 2])) < stays
            return t + 1, state, alive, total, length

        state = jax.tree.map(lambda x: for_all(x[chosen]), starts)
        zero = jnp.zeros(count * rows)
        carry = (jnp.int32(0), state, zero == 0, zero, zero.astype(jnp.int32))
        steps, _, _, total, length = jax.lax.while_loop(goes_on, step, carry)
        return total.reshape(count, rows), length.reshape(count, rows), steps


@dataclasses.dataclass(frozen=True)
class WorldTrials:
    """Episodes in the simulated world itself; ``inputs`` are the variables of the agent's model.

    Args:
      agent: follows the frames and acts by the candidate.
      environments: the world, and the frames after which an episode is cut.
      episodes: N.
    """

    agent: PolicyAgent
    environments: WorldEnvironments
    episodes: int

    def __call__(self, inputs: Variables, candidates: PyTree, key: Array) -> Array:
        """See `Trials`."""
        play = lambda params: play_world(self.agent, (inputs, params), key, self.environments, self.episodes).score  # noqa: E731
        return jax.vmap(play)(candidates)


@dataclasses.dataclass(frozen=True, eq=False)
class Evolved:
    """What `evolve` returns.

    Attributes:
      params: of the controller: the mean of the last distribution.
      history: a `FIGURES` row for each generation, ``[G, 3]``.
    """

    params: PyTree
    history: np.ndarray


def evolve(
    trials: Trials,
    inputs: PyTree,
    params: PyTree,
    settings: EvolutionConfig,
    folder: str | os.PathLike[str] | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
    log: Callable[[str], Any] | None = None,
) -> Evolved:
    """Evolves parameters that score well in ``trials``; goes on where the evolution in the same folder stopped.

    Args:
      trials: what a candidate is scored by; a score that is not finite is the worst.
      inputs: what ``trials`` takes; arguments of the compiled step, not constants of it.
      params: the mean of the first distribution.
      settings: strategy, population, generations, sigma, seed, checkpoint_every; the rest is for who makes ``trials``.
      folder: where to save (`FILE`); None saves nothing.
      about: further plain values that an evolution must have been begun with to go on.
      devices: what the population is split over; by default all of this process.
      log: gets a line every ``checkpoint_every`` generations.

    Raises:
      EvolutionError: the folder holds an evolution with other settings or a damaged file, or the population does not
        divide by the number of devices.
      Interrupted: SIGTERM or SIGINT asked to stop; the state is saved in ``folder``.
    """
    devices = tuple(devices or jax.local_devices())
    if settings.population % len(devices):
        raise EvolutionError(
            f"evolution.population is {settings.population}, expected a multiple of the {len(devices)} devices"
        )
    strategy, coefficients = _make_strategy(settings, params)
    init_key, key = jax.random.split(jax.random.key(settings.seed))
    state = strategy.init(init_key, params, coefficients)
    settled = {**settings.model_dump(mode="json"), **(about or {})}
    history: list[tuple[float, ...]] = []
    path = None if folder is None else pathlib.Path(folder) / FILE
    if path is not None and path.exists():
        state, history = _restore(path, state, settled)
    step = _compile_generation(strategy, trials, settings.population, devices)

    def save() -> None:
        if path is not None:
            _save(path, state, strategy.get_mean(state), history, settled)

    with contextlib.ExitStack() as stack:
        # Without a folder nothing can be saved, and a signal has its usual effect.
        interruption = None if path is None else stack.enter_context(Interruption())
        for generation in range(len(history), settings.generations):
            state, figures = step(state, coefficients, inputs, jax.random.fold_in(key, generation))
            history.append(tuple(float(figures[name]) for name in FIGURES))
            done = generation + 1
            if done % settings.checkpoint_every == 0 or done == settings.generations:
                save()
                if log is not None:
                    mean, best, sigma = history[-1]
                    log(f"generation {done}: mean {mean:.4g}, best {best:.4g}, sigma {sigma:.3g}")
            if path is not None and interruption is not None and (stop := interruption.requested(done)) is not None:
                save()
                raise Interrupted(stop, done, path.parent)
    return Evolved(strategy.get_mean(state), np.asarray(history, np.float32))


def evolve_run(
    run: Run,
    folder: str | os.PathLike[str],
    settings: EvolutionConfig | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    log: Callable[[str], Any] | None = None,
) -> Evolved:
    """Evolves a controller in the dream of ``run``, with the ``evolution`` section of its configuration by default.

    Raises:
      DataError: the episodes whose first frames the dreams begin with are not there.
      EvolutionError: as in `evolve`, or the model predicts no reward or no continuation.
    """
    settings = settings or run.config.evolution
    starts = dream_starts(run, settings.starts, settings.seed)
    trials, params = dream_trials(run.model, run.variables, settings)
    inputs = (run.variables, starts, jnp.float32(settings.temperature))
    return evolve(trials, inputs, params, settings, folder, about={"step": run.step}, devices=devices, log=log)


def dream_trials(
    model: WorldModel, variables: Variables, settings: EvolutionConfig
) -> tuple[DreamTrials, dict[str, Array]]:
    """The dreams that ``settings`` ask for, and the first parameters of a linear controller for them."""
    controller = LinearController(model.spec.action)
    features = jax.eval_shape(lambda: model.features(variables, model.init_state(1))).shape[-1]
    trials = DreamTrials(model, controller, settings.dreams, settings.horizon, settings.end_odds)
    return trials, controller.init(features)


def dream_starts(run: Run, count: int, seed: int = 0, split: str = "train") -> PyTree:
    """The model's states ``[S, ...]`` after the first frame of up to ``count`` episodes of the run's data."""
    episodes = matching_split(run.config, run.spec, split, count)
    rows = range(min(count, len(episodes.lengths)))
    first = dataclasses.replace(episodes.windows(rows, [0] * len(rows), 1), info={})
    return observe_sequence(run.model, run.variables, jax.random.key(seed), first).final_state


def load_controller(run: Run, folder: str | os.PathLike[str]) -> tuple[PolicyAgent, tuple[Variables, PyTree]]:
    """The agent that the evolution in ``folder`` made out of ``run``, and its parameters; ready for `play_world`.

    Raises:
      EvolutionError: there is none, or it is of another model.
    """
    path = pathlib.Path(folder) / FILE
    saved = _read(path)
    controller = LinearController(run.spec.action)
    params = {name: jnp.asarray(saved[f"controller/{name}"]) for name in ("kernel", "bias")}
    wanted = dream_trials(run.model, run.variables, EvolutionConfig())[1]["kernel"].shape
    if params["kernel"].shape != wanted:
        raise EvolutionError(f"{path}: a controller of {params['kernel'].shape}, this model needs {wanted}")
    return PolicyAgent(run.model, controller), (run.variables, params)


def score_controller(
    run: Run,
    agent: PolicyAgent,
    params: tuple[Variables, PyTree],
    settings: EvolutionConfig,
    episodes: int = 100,
    seed: int = 1,
) -> dict[str, Array]:
    """Scores ``[episodes]`` by name, of at most ``settings.horizon`` steps each: what a controller is worth where.

    ``dream`` is in the dream it was made for, at the same temperature and from held-out first frames. ``world`` is
    where the run's data came from, a simulator or a Gymnasium environment; with a simulator ``random`` is what its
    random policy scores there. They are missing where neither is known.
    """
    dream_key, world_key, random_key = jax.random.split(jax.random.key(seed), 3)
    starts = dream_starts(run, episodes, seed, "test")
    trials = DreamTrials(run.model, agent.policy, episodes, settings.horizon, settings.end_odds)
    inputs = (params[0], starts, jnp.float32(settings.temperature))
    alone = jax.tree.map(lambda x: x[None], params[1])
    scores = {"dream": _try(trials, inputs, alone, dream_key)[0]}
    if (simulation := run.config.data.simulation) is not None:
        world = build_world(simulation.world)
        skip = run.config.data.frame_skip
        environments = WorldEnvironments(world, settings.horizon + 1, skip)
        scores["world"] = play_world(agent, params, world_key, environments, episodes).score
        scores["random"] = policy_scores(world, random_policy, random_key, settings.horizon * skip, episodes)
        return scores
    recorded = read_header(run.config.data.path)["metadata"].get("record")
    if recorded is not None and run.config.data.frame_skip == 1:
        with contextlib.closing(reopen(recorded, min(episodes, 8), settings.horizon + 1)) as gymnasium:
            scores["world"] = play(agent, params, world_key, gymnasium, episodes).score
    return scores


@functools.partial(jax.jit, static_argnames=("world", "policy", "horizon", "episodes"))
def policy_scores(world: World, policy: WorldPolicy, key: Array, horizon: int, episodes: int) -> Array:
    """Scores ``[episodes]`` of a policy of the world's own, in episodes of at most ``horizon`` steps."""
    play = lambda key: rollout(world, key, horizon + 1, policy).reward.sum()  # noqa: E731
    return jax.vmap(play)(jax.random.split(key, episodes))


@functools.partial(jax.jit, static_argnums=0)
def _try(trials: Trials, inputs: PyTree, candidates: PyTree, key: Array) -> Array:
    return trials(inputs, candidates, key)


def _make_strategy(settings: EvolutionConfig, params: PyTree) -> tuple[Any, Any]:
    from evosax.algorithms import CMA_ES, Sep_CMA_ES

    strategy = {"cma_es": CMA_ES, "sep_cma_es": Sep_CMA_ES}[settings.strategy](
        population_size=settings.population, solution=params
    )
    # The library's own first deviation, 1, saturates a controller before it has learned anything.
    return strategy, strategy.default_params.replace(std_init=settings.sigma)


def _compile_generation(
    strategy: Any, trials: Trials, population: int, devices: tuple[jax.Device, ...]
) -> Callable[..., tuple[PyTree, dict[str, Array]]]:
    """One step: draw the candidates, score each device's share of them, move the distribution; all in one program."""
    share = population // len(devices)

    def generation(
        device: Array, state: PyTree, coefficients: PyTree, inputs: PyTree, key: Array
    ) -> tuple[PyTree, dict[str, Array]]:
        ask_key, trials_key, tell_key = jax.random.split(key, 3)
        candidates, state = strategy.ask(ask_key, state, coefficients)
        mine = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, device * share, share), candidates)
        returns = jnp.mean(trials(inputs, mine, trials_key), axis=1)
        returns = jax.lax.all_gather(returns, "devices", tiled=True)
        usable = jnp.isfinite(returns)
        # The strategy minimises.
        state, _ = strategy.tell(tell_key, candidates, jnp.where(usable, -returns, jnp.inf), state, coefficients)
        best = jnp.max(jnp.where(usable, returns, -jnp.inf))
        return state, {"mean": masked_mean(returns, usable), "best": best, "sigma": state.std}

    step = jax.pmap(generation, "devices", in_axes=(0, None, None, None, None), out_axes=None, devices=devices)
    return functools.partial(step, jnp.arange(len(devices)))


def _save(
    path: pathlib.Path, state: PyTree, params: Mapping[str, Array], history: Sequence[Any], settled: Mapping[str, Any]
) -> None:
    """Writes one file, whole or not at all."""
    arrays = {f"state{jax.tree_util.keystr(p)}": np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}
    arrays |= {f"controller/{name}": np.asarray(x) for name, x in params.items()}
    arrays["history"] = np.asarray(history, np.float32)
    arrays["settings"] = np.asarray(json.dumps(settled))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _restore(path: pathlib.Path, fresh: PyTree, settled: Mapping[str, Any]) -> tuple[PyTree, list[tuple[float, ...]]]:
    """The state and the history in ``path``, if it was begun with the same settings."""
    saved = _read(path)
    before = json.loads(str(saved["settings"]))
    for name in dict.fromkeys([*before, *settled]):
        if name not in _MAY_CHANGE and before.get(name) != settled.get(name):
            raise EvolutionError(
                f"{path} was begun with {name}={before.get(name)}, now {settled.get(name)}: take another folder"
            )

    def take(at: Any, leaf: Array) -> Array:
        found = saved.get(f"state{jax.tree_util.keystr(at)}")
        if found is None or found.shape != jnp.shape(leaf):
            raise EvolutionError(f"{path}: state{jax.tree_util.keystr(at)} does not fit these settings")
        return jnp.asarray(found, jnp.asarray(leaf).dtype)

    state = jax.tree_util.tree_map_with_path(take, fresh)
    return state, [tuple(row) for row in saved["history"].tolist()]


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise EvolutionError(f"{path}: there is no evolution in this folder; jaxwm evolve makes one")
    try:
        with np.load(path) as file:
            return dict(file)
    except Exception as error:  # a damaged archive can fail in any layer below
        raise EvolutionError(f"{path}: cannot be read ({type(error).__name__})") from None
