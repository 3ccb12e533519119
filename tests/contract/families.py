"""A tiny instance of every registered family, on worlds that between them have every kind of input."""

import dataclasses

import jaxwm
from jaxwm import models
from jaxwm.agents import Dreamer
from jaxwm.models.diffusion import Shortcut
from jaxwm.models.tokenizer import Tokenizer

PICTURES = jaxwm.Spec(
    (jaxwm.Field("image", (16, 16, 3), "uint8"), jaxwm.Field("vector", (3,), "float32")),
    jaxwm.ActionSpec(2, low=(-1.0, 0.0), high=(1.0, 4.0)),
)
VECTORS = jaxwm.Spec((jaxwm.Field("vector", (4,), "float32"),), jaxwm.ActionSpec(3, discrete=True))

TOLD = dataclasses.replace(
    PICTURES,
    observation=tuple(jaxwm.Field(name, (16, 16, 3), "uint8") for name in ("front", "left")),
    condition=(
        jaxwm.Field("caption", (4,), "int32"),
        jaxwm.Field("weather", (3,), "float32"),
        jaxwm.Field("boxes", (2, 5), "float32"),
        jaxwm.Field("depth", (16, 16, 2), "uint8"),
    ),
)

VECTOR_MODEL = models.FAMILIES["simple"](VECTORS, latent=16, hidden=32)
_RSSM = dict(deter=32, hidden=16, units=16, stoch=4, classes=4, depth=4, embed=16, free_nats=0.0, blocks=2)
_MDN_RNN = dict(latent=6, hidden=32, mixtures=2, embed=16, units=32, depth=4, kl_scale=0.01)
TINY = {
    "simple": models.FAMILIES["simple"](PICTURES, latent=16, hidden=32, depth=4),
    "simple-identity": models.FAMILIES["simple"](
        VECTORS, hidden=32, coder="identity", residual=True, frequencies=2, unroll=2
    ),
    "rssm": models.FAMILIES["rssm"](PICTURES, **_RSSM),
    "rssm-gaussian": models.FAMILIES["rssm"](VECTORS, recurrent="gru", latent="gaussian", kl_warmup=3, **_RSSM),
    "dreamer": Dreamer(VECTORS, horizon=3, layers=1, prior_layers=1, actor_layers=1, critic_layers=1, **_RSSM),
    "ensemble": models.FAMILIES["ensemble"](VECTORS, member=VECTOR_MODEL, members=2),
    "byol": models.FAMILIES["byol"](
        PICTURES, latent=6, belief=16, hidden=16, units=16, layers=1, depth=4, unroll=2, target_rate=0.1
    ),
    "jepa": models.FAMILIES["jepa"](
        PICTURES,
        latent=6,
        memory=8,
        hidden=32,
        units=16,
        layers=1,
        depth=4,
        unroll=2,
        gaussian_scale=0.1,
        directions=16,
    ),
    "jepa-history": models.FAMILIES["jepa"](
        VECTORS,
        latent=8,
        history=2,
        blocks=1,
        heads=1,
        hidden=32,
        units=32,
        layers=1,
        variance_scale=0.0,
        covariance_scale=0.0,
        similarity_scale=0.0,
        gaussian_scale=0.1,
        directions=16,
    ),
    "vjepa": models.FAMILIES["vjepa"](
        PICTURES,
        width=12,
        blocks=1,
        heads=2,
        predictor_width=8,
        predictor_heads=1,
        predictor_blocks=1,
        dynamics_width=12,
        dynamics_blocks=1,
        dynamics_heads=2,
        window=3,
        depth=4,
        units=16,
        target_rate=0.05,
    ),
    "diffusion": models.FAMILIES["diffusion"](
        TOLD,
        tokenizer=Tokenizer(patch=8, width=16, blocks=1, heads=2, channels=4),
        objective=Shortcut(halvings=2),
        width=24,
        blocks=1,
        heads=2,
        window=3,
        steps=2,
        units=16,
    ),
    "mdn_rnn": models.FAMILIES["mdn_rnn"](PICTURES, **_MDN_RNN),
    "mdn_rnn-joint": models.FAMILIES["mdn_rnn"](VECTORS, mixture="joint", cell_features=True, **_MDN_RNN),
}
