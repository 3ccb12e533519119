"""A simulator that makes each next frame out of noise, under an action, with a memory of the frames before.

Stage ``tokenizer`` learns to write a frame as a few continuous tokens; stage ``dynamics`` learns to take noise from
them (`jaxwm.models.diffusion.objectives`). One network and one training serve two uses: `DiffusionModel.predict`,
causal in time and with a ring of keys and values, so that a frame costs the same at any time of a dream; and
`DiffusionModel.sample`, which makes any part of a clip from the rest of it, future included: from nothing, continued,
filled in, changed, or the actions from the frames.

In the manner of Dreamer 4 (Hafner et al. 2025, arXiv:2509.24527), GAIA-2 (Russell et al. 2025, arXiv:2503.20523) and
DIAMOND (Alonso et al. 2024, arXiv:2405.12399). Read top to bottom: the state, the model.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from pydantic import Field, NonNegativeInt, PositiveInt

from jaxwm.models import register
from jaxwm.models.base import masked_mean, temperature_of
from jaxwm.models.diffusion import tasks
from jaxwm.models.diffusion.cameras import Cameras
from jaxwm.models.diffusion.conditions import ConditionReader, Told, check_conditions
from jaxwm.models.diffusion.denoiser import Denoiser
from jaxwm.models.diffusion.frames import FrameTokens
from jaxwm.models.diffusion.objectives import AnyObjective, Shortcut, draw_rows, mix, split_rows
from jaxwm.models.diffusion.samplers import Method, sample
from jaxwm.models.tokenizer import Tokenizer
from jaxwm.nn import MLP, Bernoulli, Linear
from jaxwm.nn.transformer import Cache, FrameTransformer, clear_rows
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables

Share = Annotated[float, Field(ge=0, lt=1)]
_SURPRISE_LEVELS = (0.2, 0.5, 0.8)


class DiffusionState(struct.PyTreeNode):
    """What the model knows at one time.

    Attributes:
      tokens: ``[B, M, channels]`` of the last frame, seen or made: the action that led to it, patches, vectors.
      summary: ``[B, width]`` of what the network made of the last frame and those before it.
      known: ``[B]`` bool, whether there has been a frame at all.
      cache: keys and values of the last frame and those before it.
      seen: what the tokenizer's encoder keeps of the frames so far; None if it takes each for itself.
      painted: likewise its decoder, of the frames before the last.
    """

    tokens: Array
    summary: Array
    known: Array
    cache: Cache
    seen: Cache | None
    painted: Cache | None


class _Heads(nn.Module):
    """Reward and continuation, read from the features."""

    units: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Bernoulli]:
        reward = MLP(self.units, 1, dtype=self.dtype, name="reward_hidden")(features)
        reward = Linear(1, output_scale=0.0, dtype=self.dtype, name="reward_output")(reward)
        going = MLP(self.units, 1, dtype=self.dtype, name="continue_hidden")(features)
        going = Linear(1, dtype=self.dtype, name="continue_output")(going)
        return reward[..., 0].astype(jnp.float32), Bernoulli(going[..., 0])


@register("diffusion")
@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """Tokens of frames by diffusion; the state is the last frame's tokens and a ring of frames.

    Features are the tokens of patches and vectors side by side, then the summary: the former say where a goal is that
    is known by one frame (``first`` of the planner's objective). The control ``temperature`` scales the noise that
    frames are made of and built on, and ``guidance`` is the g of ``u + g * (c - u)``, where u knows neither the
    action nor any condition. Video without known actions trains all but what they do. Of the conditions of the spec
    (`jaxwm.models.diffusion.conditions`) any may be given or left out, frame by frame.

    Args:
      spec: what the world shows and takes; images of one shape, such as those of several cameras, and vectors if there
        are any.
      tokenizer: of the images.
      objective: what is learned: ``edm``, ``flow``, ``forcing`` or ``shortcut``.
      method: how frames are sampled.
      steps: of the sampler for each frame.
      width: of the transformer.
      blocks: of the transformer.
      heads: of its attention.
      window: frames before its own that each block sees.
      recent: of these, how many a frame is shown at once; see `FrameTransformer`.
      factorised: attention within a frame, then along time, for frames of many tokens; else to all tokens at once.
      units: width of the heads.
      context_noise: share of noise in the frames that a dream is built on, which hides the small faults of frames that
        were made (section 3 of the paper on Dreamer 4); those of the training have at most as much.
      clips: share of the windows that are learned as clips, whose frames see the future too and any part of which may
        be known.
      squash: makes room for small actions; see `FrameTokens`.
      drop_action: share of the actions that are hidden in training, for guidance and for unlabelled video.
      guess_action: share of the actions that are learned to be guessed, together with their frames or from them.
      drop_condition: share of the windows in which a condition is hidden, for each of them, and that in which all are.
      dtype: what the networks compute in; parameters and states are float32.

    Raises:
      ValueError: no image or several shapes, shares that are more than a whole, or a squash that does not fit.
    """

    spec: Spec
    tokenizer: Tokenizer = Tokenizer()
    objective: AnyObjective = Shortcut()
    method: Method = "euler"
    steps: PositiveInt = 4
    width: PositiveInt = 128
    blocks: PositiveInt = 4
    heads: PositiveInt = 4
    window: PositiveInt = 15
    recent: NonNegativeInt = 2
    factorised: bool = True
    units: PositiveInt = 128
    context_noise: Share = 0.1
    clips: Share = 0.25
    squash: tuple[float, ...] = ()
    drop_action: Share = 0.1
    guess_action: Share = 0.1
    drop_condition: Share = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"

    reads_conditions: ClassVar[bool] = True
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("tokenizer", ("tokenizer",)),
        Stage("dynamics", ("denoiser", "heads")),
    )

    def __post_init__(self) -> None:
        if self.drop_action + self.guess_action >= 1:
            raise ValueError(
                f"drop_action={self.drop_action} and guess_action={self.guess_action} leave no action that is known"
            )
        self.frames  # noqa: B018  (refuses images and actions that it does not fit)
        check_conditions(self.spec.condition, self.spec.images)

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)

    @property
    def coder(self) -> Cameras:
        """The tokenizer of the images."""
        return Cameras(self.tokenizer, self.spec.images)

    @property
    def frames(self) -> FrameTokens:
        """What a frame is to the transformer."""
        return FrameTokens(self.spec, self.coder, self.squash)

    @property
    def trunk(self) -> FrameTransformer:
        """The transformer; what is no patch stands beside the picture."""
        return FrameTransformer(
            self.blocks, self.heads, self.window, self.frames.places,
            factorised=self.factorised, conditioned=True, recent=self.recent, base=100.0,
            dtype=self.compute_dtype,
        )  # fmt: skip

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        self.spec.check_trajectory(batch)
        keys = jax.random.split(key, 3)
        tokenizer, statistics = self.coder.init(keys[0], batch.observation, batch.valid)
        tokens, level = self._empty(1)[:, None], jnp.zeros((1, 1, self.frames.count))
        params = {
            "tokenizer": tokenizer,
            "denoiser": self._denoiser.init(
                keys[1], tokens, level, jnp.zeros((1, 1)), *self._silence(1), method="begin"
            )["params"],
            "heads": self._heads.init(keys[2], jnp.zeros((1, self.features_size)))["params"],
        }
        return {"params": params, "targets": {"tokenizer": statistics}}

    def init_state(self, batch_size: int) -> DiffusionState:
        """Nothing has been seen."""
        return DiffusionState(
            tokens=self._empty(batch_size),
            summary=jnp.zeros((batch_size, self.width)),
            known=jnp.zeros(batch_size, bool),
            cache=self.trunk.init_cache(batch_size, self.frames.count, self.width),
            seen=self.coder.init_cache(batch_size),
            painted=self.coder.init_cache(batch_size),
        )

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: DiffusionState,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> DiffusionState:
        """The tokens of this frame; it goes into the ring, with the action that led to it."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        begins = is_first | ~state.known
        painted = self._paint(variables, state)[1]
        state = state.replace(cache=state.cache.forget(begins), seen=clear_rows(state.seen, begins))
        latents, seen = self.coder.encode_step(variables["params"]["tokenizer"], state.seen, observation)
        previous_action = jnp.where(begins[:, None], 0.0, previous_action)
        tokens = self.frames.join(previous_action, latents, observation)
        noise, told = self._noise_of(keys, condition), self._read_step(variables, condition, len(keys))
        return self._take_in(variables, noise, state, tokens, ~begins, told).replace(
            seen=seen, painted=clear_rows(painted, begins)
        )

    def predict(
        self,
        variables: Variables,
        keys: Array,
        state: DiffusionState,
        action: Array,
        condition: Arrays | None = None,
    ) -> DiffusionState:
        """A frame that is made of noise after ``action``; it then goes into the ring as a seen one does."""
        self.spec.check_action(action, (keys.shape[0],))
        start_keys, then_keys = split_rows(keys, 2)
        noise = self._noise_of(start_keys, condition)
        level = jnp.broadcast_to(self.frames.is_action.astype(jnp.float32), noise.shape[:-1])
        given = self.frames.join(action, self.frames.latents(self._empty(len(keys))), None)
        start = mix(self.objective, given, noise, level)
        told = self._read_step(variables, condition, len(keys))
        denoise = self._next_frame(variables, state.cache, told)
        if condition is not None and "guidance" in condition:
            blind = self._next_frame(variables, state.cache, self._read_step(variables, None, len(keys)))
            denoise = self._guided(denoise, blind, noise, condition["guidance"])
        tokens = sample(self.objective, denoise, start, level, self.steps, self.method)
        then = self._noise_of(then_keys, condition)
        after = self._take_in(variables, then, state, tokens, jnp.ones_like(state.known), told)
        if state.seen is None:
            return after
        after = after.replace(painted=self._paint(variables, state)[1])
        made = jax.tree.map(_as_bytes, self._paint(variables, after)[0])
        seen = self.coder.encode_step(variables["params"]["tokenizer"], state.seen, made)[1]
        return after.replace(seen=seen)

    def features(self, variables: Variables, state: DiffusionState) -> Array:
        """``[B, (M - actions) * channels + width]``."""
        return self._features(state.tokens, state.summary)

    def decode(self, variables: Variables, state: DiffusionState) -> Prediction:
        """The frame that the tokens stand for, reward and continuation."""
        observation = {**self._paint(variables, state)[0], **self.frames.vectors(state.tokens)}
        reward, going = _run(self._heads, variables["params"]["heads"], self.features(variables, state))
        return Prediction(observation, reward, going.mean())

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: DiffusionState,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """The squared error of what is made of the frame's tokens under some noise, at three levels.

        The noise is the same for all frames: what differs between two of them is not chance.
        """
        self.spec.check_step(previous_action, observation, keys.shape[0])
        latents = self.coder.encode_step(variables["params"]["tokenizer"], state.seen, observation)[0]
        clean = self.frames.join(previous_action, latents, observation)
        noise = jnp.broadcast_to(jax.random.normal(jax.random.key(0), clean.shape[1:]), clean.shape)
        denoise = self._next_frame(variables, state.cache, self._read_step(variables, condition, len(keys)))
        errors = []
        for number in _SURPRISE_LEVELS:
            level = jnp.broadcast_to(jnp.where(self.frames.is_action, 1.0, number), clean.shape[:-1])
            step = jnp.full_like(level, self.objective.smallest)
            guess = denoise(mix(self.objective, clean, noise, level), level, step)
            errors.append(jnp.mean(jnp.square(guess - clean)[:, self.frames.actions :], axis=(1, 2)))
        return sum(errors, jnp.zeros(len(clean))) / len(errors)

    def sample(
        self,
        variables: Variables,
        key: Array,
        trajectory: Trajectory,
        known: Arrays | None = None,
        *,
        steps: int | Array | None = None,
        guidance: Array | None = None,
    ) -> Trajectory:
        """Makes the unknown parts of clips from the known ones, all frames together, each in view of the others.

        One checkpoint and one call: from scratch (nothing known), predict or extend (the first frames), interpolate
        (both ends), inpaint (a part of the picture), change a little (a level between 0 and 1), actions from frames.

        Args:
          variables: of the model.
          key: row i draws from a key that is a function of (key, i).
          trajectory: ``[B, T, ...]``; what is unknown in it has no effect. Conditions that it has are followed.
          known: levels from 0, made anew, to 1, kept as it is, by name: an image ``[B, T]`` or, by pixel,
            ``[B, T, H, W]``; a vector ``[B, T]``; ``action`` ``[B, T]``, which speaks of ``action[t]``. What is not
            named is unknown. A patch is known as well as the least known of its pixels; known pixels come back as
            they were.
          steps: of the sampler, traced; by default those of the model.
          guidance: ``[B]``; see the class.

        Returns:
          The trajectory with observations and actions as they are made.

        Raises:
          ValueError: levels of something that is not there, or of another shape.
        """
        self.spec.check_trajectory(trajectory)
        frames, rows, length = self.frames, *trajectory.reward.shape
        known = frames.check_known(known or {}, rows, length)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
        segments = jnp.where(trajectory.valid, jnp.cumsum(trajectory.is_first, axis=1), -1)
        params, given = variables["params"]["tokenizer"], trajectory.observation
        latents = self.coder.encode(params, given, segments)
        clean = frames.join(trajectory.previous_actions(), latents, given)
        level, noise = frames.levels(known, trajectory), self._noise(keys, length)
        denoise = self._whole_clips(variables, segments, self._read(variables, trajectory.condition, rows, length))
        if guidance is not None:
            blind = self._whole_clips(variables, segments, self._read(variables, {}, rows, length))
            denoise = self._guided(denoise, blind, noise, guidance[:, None])
        start = mix(self.objective, clean, noise, level)
        tokens = sample(self.objective, denoise, start, level, self.steps if steps is None else steps, self.method)

        pictures = self.coder.decode(params, frames.latents(tokens), segments)
        made = frames.vectors(tokens) | jax.tree.map(_as_bytes, pictures)
        kept = known | frames.pixel_levels(known)
        observation = {
            name: jnp.where(kept[name][..., None] == 1.0, given[name], value) for name, value in made.items()
        }
        acted = jnp.concatenate([frames.action(tokens[:, 1:]), trajectory.action[:, -1:]], axis=1)
        action = jnp.where(known["action"][..., None] == 1.0, trajectory.action, acted)
        return trajectory.replace(observation=observation, action=action)

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The loss of ``stage``; a window is seen for itself: what may lie before it has no effect."""
        self.spec.check_trajectory(batch)
        segments = jnp.where(batch.valid, jnp.cumsum(batch.is_first, axis=1), -1)
        if stage == "tokenizer":
            params, statistics = variables["params"]["tokenizer"], variables["targets"]["tokenizer"]
            observation = batch.observation
            total, metrics, found = self.coder.loss(params, statistics, keys, observation, batch.valid, segments)
            return total, Aux(metrics, found)
        losses = self._dynamics_losses(variables, keys, batch, segments)
        return sum(losses.values(), jnp.zeros(())), Aux({f"loss/{name}": value for name, value in losses.items()})

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """Codes that are not used begin anew while the tokenizer learns."""
        if stage != "tokenizer":
            return variables
        params, targets = variables["params"], variables["targets"]
        tokenizer, statistics = self.coder.one.after_update(params["tokenizer"], targets["tokenizer"], aux.states)
        return {"params": {**params, "tokenizer": tokenizer}, "targets": {**targets, "tokenizer": statistics}}

    def _dynamics_losses(
        self, variables: Variables, keys: Array, batch: Trajectory, segments: Array
    ) -> dict[str, Array]:
        """Errors of unknown frames and actions, and those of the heads in the known frames."""
        task_keys, noise_keys, drop_keys = split_rows(keys, 3)
        acts = self.frames.actions
        latents = self.coder.encode(variables["params"]["tokenizer"], batch.observation, segments)
        clean = jax.lax.stop_gradient(self.frames.join(batch.previous_actions(), latents, batch.observation))
        rows, length = clean.shape[:2]
        task = tasks.draw(
            task_keys, batch, segments, self.objective, self.frames,
            window=self.window, clips=self.clips, context_noise=self.context_noise,
            guess_action=self.guess_action, drop_action=self.drop_action,
        )  # fmt: skip
        told = self._read(variables, batch.condition, rows, length, self._heard(drop_keys))
        told = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), told)
        network = self._network(variables, mask=task.mask, time=jnp.tile(jnp.arange(length), (rows, 2)), told=told)
        noise, twice = self._noise(noise_keys, 2 * length), jnp.concatenate([clean, clean], axis=1)
        errors, summary = self.objective.loss(network, twice, noise, task.level, task.step)
        valid = jnp.tile(batch.valid, 2)
        frame_errors, action_errors = task.weight[..., None] * errors[..., acts:], errors[..., :acts].sum(-1)
        # Of the numbers in its tokens only as many as an action has say something.
        action_errors *= self.coder.channels / self.spec.action.dim
        losses = {
            "frames": masked_mean(frame_errors, task.unknown & valid[..., None]),
            "actions": masked_mean(jnp.where(task.guessed, action_errors, 0.0), valid),
        }
        dreamt = task.dreamt[:, None] & batch.valid
        return losses | self._head_losses(variables, batch, clean, summary[:, :length], dreamt)

    def _head_losses(
        self, variables: Variables, batch: Trajectory, clean: Array, summary: Array, dreamt: Array
    ) -> dict[str, Array]:
        """Of reward and continuation in the frames ``[B, T]`` that are known as in a dream."""
        reward, going = _run(self._heads, variables["params"]["heads"], self._features(clean, summary))
        rewards, rewarded = batch.previous_rewards()
        return {
            "reward": masked_mean(jnp.square(reward - rewards), rewarded & dreamt),
            "continue": masked_mean(-going.log_prob(1.0 - batch.is_terminal), dreamt),
        }

    def _network(self, variables: Variables, **attention: Any) -> Any:
        """The denoiser, for tokens ``[B, T, M, C]``; fewer rows are the first ones."""

        def network(noisy: Array, level: Array, step: Array) -> tuple[Array, Array]:
            first = jax.tree.map(lambda x: x[: len(noisy)], attention)
            params = variables["params"]["denoiser"]
            return _run(self._denoiser, params, noisy, level, self._told(step), **first)[:2]

        return network

    def _next_frame(self, variables: Variables, cache: Cache, told: Told | None = None) -> Any:
        """What a sampler asks for the frame after those in ``cache``: its expected tokens ``[B, M, C]``."""

        def expected(noisy: Array, level: Array, step: Array) -> Array:
            output = _run(
                self._denoiser, variables["params"]["denoiser"],
                noisy[:, None], level[:, None], self._told(step)[:, None], cache=cache, told=told,
            )[0]  # fmt: skip
            return self.objective.denoised(output[:, 0], noisy, level)

        return expected

    def _whole_clips(self, variables: Variables, segments: Array, told: Told | None = None) -> Any:
        """What a sampler asks for whole clips: their expected tokens ``[B, T, M, C]``, the future in view."""
        network = self._network(variables, mask=tasks.see_both_ways(segments, self.window), told=told)

        def expected(noisy: Array, level: Array, step: Array) -> Array:
            return self.objective.denoised(network(noisy, level, step)[0], noisy, level)

        return expected

    def _guided(self, expected: Any, blind: Any, noise: Array, guidance: Array) -> Any:
        """``u + g * (c - u)``, g ``[B]``, or ``[B, 1]`` for clips: c is ``expected``, u ``blind``.

        The latter knows no conditions, and is shown ``noise`` for the action.
        """
        acts = self.frames.is_action

        def guided(noisy: Array, level: Array, step: Array) -> Array:
            hidden = jnp.where(acts, 0.0, level)
            nothing = mix(self.objective, jnp.zeros_like(noise), noise, hidden)
            without = blind(jnp.where(acts[:, None], nothing, noisy), hidden, step)
            return without + guidance[..., None, None] * (expected(noisy, level, step) - without)

        return guided

    def _told(self, step: Array) -> Array:
        """The step ``[...]`` that a network is told for a frame whose tokens take steps ``[..., M]``.

        None is smaller than those it learned.
        """
        smallest = self.objective.smallest
        return jnp.maximum(jnp.max(step, axis=-1), smallest) if smallest else jnp.zeros(step.shape[:-1])

    def _take_in(
        self,
        variables: Variables,
        noise: Array,
        state: DiffusionState,
        tokens: Array,
        acted: Array,
        told: Told | None = None,
    ) -> DiffusionState:
        """The state with a frame more, whose action is known where ``acted`` ``[B]``."""
        level = jnp.where(self.frames.is_action, acted[:, None].astype(jnp.float32), 1.0 - self.context_noise)
        noisy = mix(self.objective, tokens, noise, level)
        step = jnp.full((len(tokens), 1), self.objective.smallest)
        _, summary, entries = _run(
            self._denoiser, variables["params"]["denoiser"],
            noisy[:, None], level[:, None], step, cache=state.cache, told=told,
        )  # fmt: skip
        return state.replace(
            tokens=tokens, summary=summary[:, 0], known=jnp.ones_like(state.known), cache=state.cache.append(entries)
        )

    def _read_step(self, variables: Variables, condition: Arrays | None, rows: int) -> Told | None:
        """What the conditions ``[B, ...]`` of one step say."""
        condition = condition or {}
        given = {
            field.name: condition[field.name][:, None] for field in self.spec.condition if field.name in condition
        }
        return self._read(variables, given, rows, 1)

    def _read(
        self, variables: Variables, condition: Arrays, rows: int, length: int, heard: Array | None = None
    ) -> Told | None:
        """What conditions ``[B, T, ...]`` say, those that are given and (None: all) ``heard`` ``[B, conditions]``."""
        if not self.spec.condition:
            return None
        silent, known = self._silence(rows, length)
        given = {name: condition.get(name, value) for name, value in silent.items()}
        known |= jnp.array([name in condition for name in silent])
        if heard is not None:
            known &= heard[:, None]
        told: Any = self._denoiser.apply({"params": variables["params"]["denoiser"]}, given, known, method="read")
        return told

    def _silence(self, rows: int, length: int = 1) -> tuple[dict[str, Array], Array]:
        """Conditions that say nothing, and that none of them is known ``[B, T, conditions]``."""
        fields = self.spec.condition
        silent = {field.name: jnp.zeros((rows, length, *field.shape), field.dtype) for field in fields}
        return silent, jnp.zeros((rows, length, len(fields)), bool)

    def _heard(self, keys: Array) -> Array:
        """``[B, conditions]``: which are not hidden in training."""
        drawn = tasks.uniform(keys, 1 + len(self.spec.condition))
        return (drawn[:, :1] >= self.drop_condition) & (drawn[:, 1:] >= self.drop_condition)

    def _paint(self, variables: Variables, state: DiffusionState) -> tuple[dict[str, Array], Cache | None]:
        """The pictures ``[B, H, W, C]`` of the last frame by name, and the decoder's cache with them."""
        latents = self.frames.latents(state.tokens)
        return self.coder.decode_step(variables["params"]["tokenizer"], state.painted, latents)

    def _features(self, tokens: Array, summary: Array) -> Array:
        shown = tokens[..., self.frames.actions :, :]
        return jnp.concatenate([shown.reshape(*shown.shape[:-2], -1), summary], axis=-1)

    @property
    def features_size(self) -> int:
        """F."""
        return (self.frames.count - self.frames.actions) * self.coder.channels + self.width

    def _noise(self, keys: Array, *leading: int) -> Array:
        """``[B, *leading, M, C]``, each row from a key of its own."""
        return draw_rows(jax.random.normal, keys, *leading, self.frames.count, self.coder.channels)

    def _noise_of(self, keys: Array, condition: Arrays | None) -> Array:
        """``[B, M, C]`` for a step of a dream; none at temperature 0, so that nothing in it is chance."""
        temperature = temperature_of(condition)
        return self._noise(keys) * (1.0 if temperature is None else temperature[:, None, None])

    def _empty(self, rows: int) -> Array:
        return jnp.zeros((rows, self.frames.count, self.coder.channels))

    @property
    def _denoiser(self) -> Denoiser:
        reader = None
        if self.spec.condition:
            reader = ConditionReader(
                self.spec.condition, self.coder.count, self.tokenizer.patch, self.width, self.heads, self.compute_dtype
            )
        return Denoiser(self.frames.groups, self.trunk, self.width, self.objective, reader, self.compute_dtype)

    @property
    def _heads(self) -> _Heads:
        return _Heads(self.units, self.compute_dtype)


def _as_bytes(image: Array) -> Array:
    return jnp.round(255.0 * image).astype(jnp.uint8)


def _run(module: nn.Module, params: Any, *inputs: Any, **named: Any) -> Any:
    return module.apply({"params": params}, *inputs, **named)
