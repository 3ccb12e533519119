"""The recurrent state-space model: a deterministic memory and a stochastic state (PlaNet to DreamerV3).

One family, two classical points of it. With ``recurrent="gru", latent="gaussian"`` it is the RSSM of PlaNet and
Dreamer (Hafner et al. 2019, arXiv:1811.04551; 2020, arXiv:1912.01603); with ``recurrent="block_gru",
latent="categorical"`` it is the world model of DreamerV3 (Hafner et al. 2023, arXiv:2301.04104), whose size
table is `RSSM.SIZES`.

Read top to bottom: the networks, the state, the model (the contract, then the vocabulary of the papers).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from jaxwm.models import register
from jaxwm.models.base import make_decoder, make_encoder, masked_mean, scan_time, temperature_of
from jaxwm.nn import MLP, Bernoulli, BlockGRU, GRUCell, Linear, Normal, OneHot, TwoHot
from jaxwm.nn.coders import start_from_mean_frame
from jaxwm.nn.layers import activate, normalise
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables

Belief = Normal | OneHot
"""A distribution over the stochastic state: a prior or a posterior."""


class RSSMState(struct.PyTreeNode):
    """What the model knows at one time.

    Attributes:
      deter: ``[B, deter]``, the memory.
      stoch: ``[B, stoch]`` or one-hot ``[B, stoch, classes]``, a sample of ``belief``.
      belief: the posterior after `RSSM.observe`, the prior after `RSSM.predict`.
    """

    deter: Array
    stoch: Array
    belief: Belief


class _Networks(nn.Module):
    """All parameters of an `RSSM`, as linen modules with one method for each arrow of the paper's figure."""

    config: RSSM

    def setup(self) -> None:
        c = self.config
        mlp = functools.partial(MLP, norm=c.norm, activation=c.activation, dtype=c.compute_dtype)
        linear = functools.partial(Linear, dtype=c.compute_dtype)
        parameters = c.stoch * (2 if c.latent == "gaussian" else c.classes)
        self.encoder = make_encoder(c, c.embed, c.units)
        self.decoder = make_decoder(c, c.units, c.background)
        self.cell: Any = (
            GRUCell(c.deter, dtype=c.compute_dtype)
            if c.recurrent == "gru"
            else BlockGRU(c.deter, c.hidden, c.blocks, dtype=c.compute_dtype)
        )
        self.prior_hidden = mlp(c.hidden, c.prior_layers)
        self.prior_output = linear(parameters)
        # The first layer of the posterior acts on [deter, embed]; kept as two, so that the part of a whole
        # sequence of embeddings is one product before the scan.
        self.posterior_deter = linear(c.hidden)
        self.posterior_embed = nn.Dense(c.hidden, use_bias=False, dtype=c.compute_dtype)
        self.posterior_hidden = _PosteriorHidden(c.hidden, c.posterior_layers, c.norm, c.activation, c.compute_dtype)
        self.posterior_output = linear(parameters)
        self.reward_hidden = mlp(c.units, 1)
        self.reward_output = linear(TwoHot.bins().size, output_scale=0.0)
        self.continue_hidden = mlp(c.units, 1)
        self.continue_output = linear(1)

    def embed(self, observation: Arrays) -> Array:
        """Raw observation ``[..., ...]`` to what it adds to the posterior, ``[..., hidden]``."""
        return self.project(self.encoder(observation))

    def project(self, encoded: Array) -> Array:
        """The encoder's output ``[..., embed]`` to what it adds to the posterior, ``[..., hidden]``."""
        return self.posterior_embed(encoded)

    def advance(self, state: RSSMState, action: Array) -> Array:
        """The memory one step on, ``[B, deter]``; ``action`` in raw units."""
        action = self.config.spec.action.normalise(action)
        stoch = state.stoch.reshape(state.stoch.shape[0], -1)
        if self.config.recurrent == "gru":
            return self.cell(state.deter, jnp.concatenate([stoch, action], axis=-1))
        return self.cell(state.deter, stoch, action)

    def prior(self, deter: Array) -> Belief:
        """What the memory alone says of the stochastic state."""
        return self._belief(self.prior_output(self.prior_hidden(deter)))

    def posterior(self, deter: Array, embed: Array) -> Belief:
        """What the memory and a frame (through `embed`) say of the stochastic state."""
        return self._belief(self.posterior_output(self.posterior_hidden(self.posterior_deter(deter) + embed)))

    def heads(self, features: Array) -> tuple[dict[str, Any], TwoHot, Bernoulli]:
        """Distributions of the observation, the reward and the continuation, for ``features`` ``[..., F]``."""
        reward = TwoHot(self.reward_output(self.reward_hidden(features)))
        continuation = Bernoulli(self.continue_output(self.continue_hidden(features))[..., 0])
        return self.decoder(features), reward, continuation

    def everything(self, state: RSSMState, action: Array, observation: Arrays) -> Any:
        """Touches every parameter; only for initialisation."""
        deter = self.advance(state, action)
        posterior = self.posterior(deter, self.embed(observation))
        stoch = posterior.mode().reshape(deter.shape[0], -1)
        return self.prior(deter), self.heads(jnp.concatenate([deter, stoch], axis=-1))

    def _belief(self, parameters: Array) -> Belief:
        c = self.config
        parameters = parameters.astype(jnp.float32)
        if c.latent == "gaussian":
            location, scale = jnp.split(parameters, 2, axis=-1)
            return Normal(location, jax.nn.softplus(scale) + c.min_std)
        return OneHot(parameters.reshape(*parameters.shape[:-1], c.stoch, c.classes), unimix=c.unimix)


class _PosteriorHidden(nn.Module):
    """The rest of the posterior's hidden layers, after the products of the first one."""

    features: int
    layers: int
    norm: Any
    activation: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = activate(self.activation, normalise(self.norm, x, self.dtype, "norm_0"))
        rest = MLP(self.features, self.layers - 1, self.norm, self.activation, self.dtype, name="rest")
        return rest(x) if self.layers > 1 else x


@register("rssm")
@dataclasses.dataclass(frozen=True)
class RSSM:
    """Recurrent state-space model; the defaults are DreamerV3's size 1m, but for a wider ``embed``.

    The sizes of the table set ``embed`` to ``hidden``: the published width for vectors, and of a picture (whose
    published encoder ends 64 * ``depth`` wide) all that the linear layer which takes it can hear.

    Args:
      spec: what the world shows and takes.
      recurrent: ``gru`` (one dense GRU) or ``block_gru`` (DreamerV3's, with ``blocks`` diagonal blocks).
      latent: ``gaussian`` (``stoch`` dimensions) or ``categorical`` (``stoch`` variables of ``classes`` classes).
      deter: size of the memory.
      stoch: size of the stochastic state.
      classes: classes of each categorical variable.
      hidden: width of the layers inside the dynamics.
      blocks: diagonal blocks of the block GRU.
      prior_layers: hidden layers of the prior.
      posterior_layers: hidden layers of the posterior.
      units: width of the vector coders and of the heads.
      layers: hidden layers of the vector coders.
      depth: width of the image coders.
      embed: size of the encoder's output.
      coder: ``patch`` (fast everywhere) or ``stride`` (the layers of the listing).
      norm: normalisation of hidden layers.
      activation: activation of hidden layers.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` or ``linear``.
      background: whether the decoder starts from the mean frame of the batch that `init` is given.
      min_std: least standard deviation of a Gaussian state.
      unimix: share of the uniform distribution in a categorical state.
      free_nats: KL below this many nats costs nothing.
      dynamics_scale: weight of KL(sg(posterior) ‖ prior), which trains the prior.
      representation_scale: weight of KL(posterior ‖ sg(prior)), which trains the posterior.
      kl_warmup: updates in which both weights rise from 0 (Bowman et al. 2016). A picture whose moving part is small
        pays less than its state costs, and a state that says nothing is learned first and left late.
      reward_scale: weight of the reward loss.
      continue_scale: weight of the continuation loss.
      dtype: what the networks compute in; parameters and beliefs are float32.
    """

    spec: Spec
    recurrent: Literal["gru", "block_gru"] = "block_gru"
    latent: Literal["gaussian", "categorical"] = "categorical"
    deter: PositiveInt = 512
    stoch: PositiveInt = 32
    classes: Annotated[int, Field(ge=2)] = 4
    hidden: PositiveInt = 64
    blocks: PositiveInt = 8
    prior_layers: PositiveInt = 2
    posterior_layers: PositiveInt = 1
    units: PositiveInt = 64
    layers: PositiveInt = 3
    depth: PositiveInt = 4
    embed: PositiveInt = 256
    coder: Literal["patch", "stride"] = "patch"
    norm: Literal["rms", "none"] = "rms"
    activation: Literal["silu", "relu"] = "silu"
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    background: bool = True
    min_std: PositiveFloat = 0.1
    unimix: Annotated[float, Field(ge=0, lt=1)] = 0.01
    free_nats: NonNegativeFloat = 1.0
    dynamics_scale: NonNegativeFloat = 1.0
    representation_scale: NonNegativeFloat = 0.1
    kl_warmup: NonNegativeInt = 0
    reward_scale: NonNegativeFloat = 1.0
    continue_scale: NonNegativeFloat = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"

    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "1m": dict(deter=512, hidden=64, units=64, embed=64, classes=4, depth=4),
        "12m": dict(deter=2048, hidden=256, units=256, embed=256, classes=16, depth=16),
        "25m": dict(deter=3072, hidden=384, units=384, embed=384, classes=24, depth=24),
        "50m": dict(deter=4096, hidden=512, units=512, embed=512, classes=32, depth=32),
        "100m": dict(deter=6144, hidden=768, units=768, embed=768, classes=48, depth=48),
        "200m": dict(deter=8192, hidden=1024, units=1024, embed=1024, classes=64, depth=64),
        "400m": dict(deter=12288, hidden=1536, units=1536, embed=1536, classes=96, depth=96),
    }

    def __post_init__(self) -> None:
        if self.recurrent == "block_gru" and self.deter % self.blocks:
            raise ValueError(f"deter={self.deter} does not divide into blocks={self.blocks}")

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        self.spec.check_trajectory(batch)
        first = {name: value[:, 0] for name, value in batch.observation.items()}
        state = self.init_state(batch.reward.shape[0])
        params = dict(_Networks(self).init(key, state, batch.action[:, 0], first, method="everything")["params"])
        if self.background:
            params |= {"decoder": start_from_mean_frame(params["decoder"], self.spec, batch, self.pixels)}
        params = self._with_audible_state(params)
        return {"params": params, "targets": {"updates": jnp.zeros((), jnp.int32)} if self.kl_warmup else {}}

    def init_state(self, batch_size: int) -> RSSMState:
        """Zeros; see `jaxwm.types.WorldModel.init_state`."""
        if self.latent == "gaussian":
            shape: tuple[int, ...] = (batch_size, self.stoch)
            belief: Belief = Normal(jnp.zeros(shape), jnp.ones(shape))
        else:
            shape = (batch_size, self.stoch, self.classes)
            belief = OneHot(jnp.zeros(shape), unimix=self.unimix)
        return RSSMState(jnp.zeros((batch_size, self.deter)), jnp.zeros(shape), belief)

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: RSSMState,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> RSSMState:
        """The posterior; see `jaxwm.types.WorldModel.observe`."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        embed = self._apply(variables, "embed", observation)
        return self._observe(variables, keys, state, previous_action, embed, is_first, temperature_of(condition))

    def predict(
        self, variables: Variables, keys: Array, state: RSSMState, action: Array, condition: Arrays | None = None
    ) -> RSSMState:
        """The prior; see `jaxwm.types.WorldModel.predict`."""
        self.spec.check_action(action, (keys.shape[0],))
        deter = self._apply(variables, "advance", state, action)
        belief = self._apply(variables, "prior", deter)
        return RSSMState(deter, belief.sample(keys, temperature_of(condition)), belief)

    def features(self, variables: Variables, state: RSSMState) -> Array:
        """``[B, deter + stoch]``, memory and stochastic state side by side."""
        return jnp.concatenate([state.deter, state.stoch.reshape(state.stoch.shape[0], -1)], axis=-1)

    def decode(self, variables: Variables, state: RSSMState) -> Prediction:
        """Images, vectors, reward and continuation; the uncertainty is the entropy of the belief in nats."""
        observation, reward, continuation = self._apply(variables, "heads", self.features(variables, state))
        return Prediction(
            observation={name: head.mode() for name, head in observation.items()},
            reward=reward.mean(),
            continuation=continuation.mean(),
            uncertainty=state.belief.entropy(),
        )

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: RSSMState,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """KL(posterior ‖ prior) in nats: Bayesian surprise, what the frame told that the memory had not known."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        deter = self._apply(variables, "advance", state, previous_action)
        posterior = self._apply(variables, "posterior", deter, self._apply(variables, "embed", observation))
        return posterior.kl(self._apply(variables, "prior", deter))

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """DreamerV3's world model loss (equations 4 and 5), a mean over the valid entries.

        The image loss is the squared error summed over pixels on the scale 0..1, that of vectors is in symlog
        space. With ``free_nats`` 0 and both KL scales 1 the gradient is that of one plain KL, as in PlaNet.
        """
        del stage
        self.spec.check_trajectory(batch)
        embeds = self._apply(variables, "embed", batch.observation)
        previous_actions = batch.previous_actions()

        def step(state: RSSMState, inputs: tuple[Array, ...]) -> tuple[RSSMState, RSSMState]:
            t, previous_action, embed, is_first = inputs
            step_keys = jax.vmap(jax.random.fold_in)(keys, t)
            state = self._observe(variables, step_keys, state, previous_action, embed, is_first)
            return state, state

        rows, length = batch.reward.shape
        times = jnp.broadcast_to(jnp.arange(length), (rows, length))
        start = self.init_state(rows) if batch.initial_state is None else batch.initial_state
        _, states = scan_time(step, start, (times, previous_actions, embeds, batch.is_first))

        prior, posterior = self._apply(variables, "prior", states.deter), states.belief
        dynamics = jax.lax.stop_gradient(posterior).kl(prior)
        representation = posterior.kl(jax.lax.stop_gradient(prior))
        features = jnp.concatenate([states.deter, states.stoch.reshape(*states.deter.shape[:2], -1)], axis=-1)
        observation, reward, continuation = self._apply(variables, "heads", features)
        previous_rewards, rewarded = batch.previous_rewards()
        terms = {name: -head.log_prob(batch.observation[name]) for name, head in observation.items()}
        metrics = {f"loss/{name}": masked_mean(term, batch.valid) for name, term in terms.items()}
        metrics["loss/reward"] = masked_mean(-reward.log_prob(previous_rewards), rewarded)
        metrics["loss/continue"] = masked_mean(-continuation.log_prob(1.0 - batch.is_terminal), batch.valid)
        metrics["loss/dynamics"] = masked_mean(jnp.maximum(dynamics, self.free_nats), batch.valid)
        metrics["loss/representation"] = masked_mean(jnp.maximum(representation, self.free_nats), batch.valid)
        warmth = jnp.minimum(variables["targets"]["updates"] / self.kl_warmup, 1.0) if self.kl_warmup else 1.0
        weights = {
            "loss/reward": self.reward_scale,
            "loss/continue": self.continue_scale,
            "loss/dynamics": warmth * self.dynamics_scale,
            "loss/representation": warmth * self.representation_scale,
        }
        total = sum((weights.get(name, 1.0) * term for name, term in metrics.items()), jnp.zeros(()))
        metrics["kl"] = masked_mean(dynamics, batch.valid)
        metrics["prior_entropy"] = masked_mean(prior.entropy(), batch.valid)
        metrics["posterior_entropy"] = masked_mean(posterior.entropy(), batch.valid)
        return total, Aux(metrics, states)

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """Counts the updates while the KL warms up."""
        if not self.kl_warmup:
            return variables
        return {**variables, "targets": {"updates": variables["targets"]["updates"] + 1}}

    # The vocabulary of the papers and of the listing.

    initial_state = init_state

    def prior(self, variables: Variables, keys: Array, state: RSSMState, action: Array) -> RSSMState:
        """Predicts the next state from the action alone: `predict` by its name in the literature."""
        return self.predict(variables, keys, state, action)

    def posterior(self, variables: Variables, keys: Array, state: RSSMState, action: Array, embed: Array) -> RSSMState:
        """Infers the next state from the action and an embedded frame, ``embed`` ``[B, embed]`` (encoder output)."""
        embed = self._apply(variables, "project", embed)
        return self._observe(variables, keys, state, action, embed, jnp.zeros(keys.shape[0], bool))

    def imagine_trajectory(
        self, variables: Variables, key: Array, initial_state: RSSMState, actions: Array, horizon: int
    ) -> RSSMState:
        """The states ``[B, horizon+1, ...]`` that follow from ``initial_state`` by the prior, itself at entry 0."""
        from jaxwm.imagination import imagine

        return imagine(self, variables, key, initial_state, actions, horizon=horizon, return_states=True).states  # type: ignore[return-value]

    def kl(self, prior_state: RSSMState, posterior_state: RSSMState) -> Array:
        """KL(posterior ‖ prior) in nats, summed over the state's dimensions, mean over the batch."""
        return jnp.mean(posterior_state.belief.kl(prior_state.belief))  # type: ignore[arg-type]

    def _with_audible_state(self, params: dict[str, Any]) -> dict[str, Any]:
        """Fresh parameters with which a stochastic state is heard from the first update on.

        The image decoders weigh the stochastic state by its own size: by that of all features, a wide memory that
        knows nothing yet would drown it. Gaussian beliefs begin narrow, so that they differ by more than their noise.
        """
        decoder = dict(params["decoder"])
        for field in self.spec.images:
            layer = decoder[f"image_{field.name}"]["features_layer"]
            features = layer["kernel"].shape[0]
            gain = jnp.ones((features, 1)).at[self.deter :].set(math.sqrt(features / (features - self.deter)))
            layer = {**layer, "kernel": layer["kernel"] * gain}
            decoder[f"image_{field.name}"] = {**decoder[f"image_{field.name}"], "features_layer": layer}
        params = {**params, "decoder": decoder}
        if self.latent == "gaussian":
            for name in ("prior_output", "posterior_output"):
                bias = params[name]["bias"].at[self.stoch :].set(-2.0)
                params[name] = {**params[name], "bias": bias}
        return params

    def _observe(
        self,
        variables: Variables,
        keys: Array,
        state: RSSMState,
        previous_action: Array,
        embed: Array,
        is_first: Array,
        temperature: Array | None = None,
    ) -> RSSMState:
        def keep(x: Array) -> Array:
            return jnp.where(is_first.reshape(-1, *[1] * (x.ndim - 1)), 0.0, x)

        state = state.replace(deter=keep(state.deter), stoch=keep(state.stoch))
        deter = self._apply(variables, "advance", state, keep(previous_action))
        belief = self._apply(variables, "posterior", deter, embed)
        return RSSMState(deter, belief.sample(keys, temperature), belief)

    def _apply(self, variables: Variables, method: str, *args: Any) -> Any:
        return _Networks(self).apply({"params": variables["params"]}, *args, method=method)
