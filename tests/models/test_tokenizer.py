"""Tokens: causal, rows apart, step by step as all at once, losses blind to padding, codes that come back."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.models.tokenizer import Tokenizer
from jaxwm.nn.quantise import dead_codes
from jaxwm.nn.transformer import clear_rows
from jaxwm.types import Field

FIELD = Field("image", (8, 12, 3), "uint8")
B, T = 2, 5
SMALL = Tokenizer(patch=4, width=16, blocks=1, heads=2, channels=3, codes=6, levels=(5, 4))
KINDS = {
    "kl": dataclasses.replace(SMALL, kind="kl", kl_scale=0.1, window=2),
    "masked": dataclasses.replace(SMALL, kind="masked", mask=0.9, pixels="linear"),
    "vq": dataclasses.replace(SMALL, kind="vq"),
    "fsq": dataclasses.replace(SMALL, kind="fsq"),
}
EQUAL = jnp.full(6, 1 / 6)
VALID = jnp.array([[True] * 5, [True, True, True, False, False]])
SEGMENTS = jnp.array([[0, 0, 0, 1, 1], [2, 2, 2, 2, 2]])


def pictures(seed):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (B, T, *FIELD.shape)), jnp.uint8)


class Compiled:
    """A tokenizer none of whose parameters is zero, its functions compiled once."""

    def __init__(self, config):
        self.bound = bound = config.bind(FIELD)
        self.images, self.keys = pictures(0), jax.random.split(jax.random.key(1), B)
        shapes, self.statistics = jax.eval_shape(bound.init, self.keys[0], self.images, VALID)
        self.statistics = jax.tree.map(lambda x: jnp.zeros(x.shape), self.statistics)
        draw = np.random.default_rng(1)
        self.params = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape) / 4, x.dtype), shapes)
        self.to_indices, self.from_indices = jax.jit(bound.to_indices), jax.jit(bound.from_indices)
        self.encode, self.decode = jax.jit(self.bound.encode), jax.jit(self.bound.decode)

        @jax.jit
        def loss(params, images, keys, valid, segments):
            def scalar(params):
                total, *rest = self.bound.loss(params, self.statistics, keys, images, valid, segments)
                return total, rest

            (total, (metrics, found)), gradient = jax.value_and_grad(scalar, has_aux=True)(params)
            return total, gradient, metrics, found

        self._loss = loss

    def loss(self, params=None, images=None, keys=None, valid=VALID, segments=SEGMENTS):
        given = (self.params, self.images, self.keys)
        return self._loss(
            *(b if a is None else a for a, b in zip((params, images, keys), given, strict=True)), valid, segments
        )


@pytest.fixture(scope="module", params=KINDS)
def made(request):
    return Compiled(KINDS[request.param])


@pytest.fixture(scope="module")
def vq():
    return Compiled(KINDS["vq"])


def test_shapes_scales_and_indices_both_ways(made):
    bound, tokens = made.bound, made.encode(made.params, made.images)
    assert (bound.tokens, bound.grid) == (6, (2, 3))
    assert bound.channels == (2 if bound.config.kind == "fsq" else 3)
    chex.assert_shape(tokens.latents, (B, T, 6, bound.channels))
    assert tokens.latents.dtype == jnp.float32
    images = made.decode(made.params, tokens.latents)
    chex.assert_shape(images, made.images.shape)
    assert images.dtype == jnp.float32 and float(images.min()) >= 0 and float(images.max()) <= 1
    if bound.config.kind == "masked":
        assert float(jnp.abs(tokens.latents).max()) < 1
    if not bound.codes:
        assert tokens.indices is None
        with pytest.raises(ValueError, match="which has no codes; expected 'vq' or 'fsq'"):
            bound.to_indices(made.params, tokens.latents)
        with pytest.raises(ValueError, match="which has no codes; expected 'vq' or 'fsq'"):
            bound.from_indices(made.params, jnp.zeros((1,), jnp.int32))
        return
    chex.assert_shape(tokens.indices, (B, T, 6))
    assert bound.codes == {"vq": 6, "fsq": 20}[bound.config.kind] > int(tokens.indices.max())
    np.testing.assert_allclose(made.from_indices(made.params, tokens.indices), tokens.latents, atol=1e-6)
    np.testing.assert_array_equal(made.to_indices(made.params, tokens.latents), tokens.indices)
    every = np.asarray(bound.from_indices(made.params, jnp.arange(bound.codes)))
    assert np.mean(every**2) == pytest.approx(1.0, abs=1e-4)


def test_the_decoder_starts_from_the_mean_of_the_valid_frames(vq):
    fresh, statistics = jax.jit(vq.bound.init)(jax.random.key(0), vq.images, VALID)
    expected = np.asarray(vq.images)[np.asarray(VALID)].mean(0) / 255
    shown = 1 / (1 + np.exp(-np.asarray(fresh["decoder"]["background"])))
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    decoded = np.asarray(vq.decode(fresh, vq.encode(fresh, vq.images).latents))
    assert np.abs(decoded - expected).mean() < 0.1
    assert np.abs(decoded - vq.images / 255).mean() > 0.2
    chex.assert_trees_all_equal_shapes_and_dtypes((fresh, statistics), (vq.params, vq.statistics))


def changed_at(function, inputs, t):
    """``[B, T]``: which frames of the output change when the input does at time ``t`` of row 0."""
    inputs, other = np.asarray(inputs), np.array(inputs)
    other[0, t] = other[1, t]
    difference = np.abs(np.asarray(function(inputs)) - np.asarray(function(other)))
    return difference.max(axis=tuple(range(2, difference.ndim))) > 0


def test_frames_see_their_window_of_the_past_and_rows_not_each_other(made):
    latents = np.random.default_rng(3).normal(size=(B, T, 6, made.bound.channels)).astype(np.float32)
    reach = (1, 2, 3) if made.bound.config.window else (1,)
    changed = changed_at(lambda x: made.decode(made.params, x), latents, 1)
    np.testing.assert_array_equal(changed, [[t in reach for t in range(T)], [False] * T])
    seen = changed_at(lambda x: made.encode(made.params, x).latents, made.images, 1)
    if made.bound.codes:
        # Codes jump: not everything that is seen changes them.
        assert seen[0, 1] and not (seen & ~changed).any()
    else:
        np.testing.assert_array_equal(seen, changed)


def test_frame_by_frame_is_the_same_as_all_at_once(made):
    bound, traces = made.bound, []
    if bound.config.kind not in ("kl", "vq"):
        pytest.skip("the same for the other kinds")

    @jax.jit
    def step(params, caches, image, begins):
        traces.append(1)
        caches = clear_rows(caches, begins)
        tokens, encoder = bound.encode_step(params, caches[0], image)
        decoded, decoder = bound.decode_step(params, caches[1], tokens.latents)
        return (encoder, decoder), tokens, decoded

    caches = (bound.init_cache(B), bound.init_cache(B))
    if not bound.config.window:
        assert not jax.tree.leaves(caches), "costs nothing"
    begins = np.diff(SEGMENTS, axis=1, prepend=-1) != 0
    tokens = made.encode(made.params, made.images, SEGMENTS)
    images = made.decode(made.params, tokens.latents, SEGMENTS)
    for t in range(T):
        caches, now, image = step(made.params, caches, made.images[:, t], begins[:, t])
        np.testing.assert_allclose(now.latents, tokens.latents[:, t], atol=1e-5)
        np.testing.assert_allclose(image, images[:, t], atol=1e-5)
    assert len(traces) == 1


def test_episodes_do_not_see_each_other(made):
    whole = made.encode(made.params, made.images, SEGMENTS).latents
    other = made.encode(made.params, made.images.at[0, 2].set(0), SEGMENTS).latents
    np.testing.assert_array_equal(whole[0, 3:], other[0, 3:])


def test_padding_changes_no_loss(made):
    gaps = np.array(VALID)
    gaps[0, 1] = False
    other = np.where(gaps[..., None, None, None], made.images, pictures(5))
    before, after = made.loss(valid=gaps), made.loss(images=other, valid=gaps)
    chex.assert_trees_all_equal(before, after)
    assert float(made.loss(images=pictures(5), valid=gaps)[0]) != float(before[0])
    nothing = made.loss(valid=gaps & False)
    chex.assert_tree_all_finite(nothing[:3])
    assert float(nothing[0]) == 0.0


def test_the_loss_by_hand(made):
    total, _, metrics, found = made.loss()
    kind, valid = made.bound.config.kind, np.asarray(VALID)
    if kind in ("vq", "fsq"):
        tokens = made.encode(made.params, made.images, SEGMENTS)
        images = np.asarray(made.decode(made.params, tokens.latents, SEGMENTS))
        errors = np.square(images - np.asarray(made.images) / 255)[valid]
        assert float(metrics["tokenizer/reconstruction"]) == pytest.approx(errors.sum() / valid.sum() / 6, rel=1e-4)
        assert float(metrics["tokenizer/psnr"]) == pytest.approx(-10 * np.log10(errors.mean()), rel=1e-4)
        shares = (
            np.bincount(np.asarray(tokens.indices)[valid].reshape(-1), minlength=made.bound.codes) / valid.sum() / 6
        )
        np.testing.assert_allclose(found.shares, shares, rtol=1e-5)
        assert float(metrics["codes/used"]) == pytest.approx((shares > 0).mean())
        assert float(metrics["codes/dead"]) == 1.0, "none has been counted yet"
        entropy = -sum(share * np.log(share) for share in shares if share)
        assert float(metrics["codes/perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-4)
    else:
        assert found is None
    parts = (
        metrics["tokenizer/reconstruction"]
        + 0.1 * metrics.get("tokenizer/kl", 0.0)
        + metrics.get("tokenizer/codes", 0.0)
    )
    assert float(total) == pytest.approx(float(parts), rel=1e-5)
    assert ("tokenizer/kl" in metrics, "tokenizer/codes" in metrics) == (kind == "kl", kind == "vq")


def test_every_parameter_has_a_gradient_the_codes_in_use_among_them(made):
    _, gradient, _, found = made.loss()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    if made.bound.config.kind == "vq":
        moved = np.abs(gradient["codebook"]).max(-1) > 0
        np.testing.assert_array_equal(moved, np.asarray(found.shares) > 0)
        assert moved.any()


def test_chance_is_in_the_keys_alone(made):
    other = made.loss(keys=jax.random.split(jax.random.key(7), B))
    same = made.loss(keys=jax.random.split(jax.random.key(1), B))
    chex.assert_trees_all_equal(same, made.loss())
    by_chance = made.bound.config.kind in ("kl", "masked")
    assert (float(other[0]) != float(same[0])) == by_chance


def test_dead_codes_begin_anew_in_the_batch_and_only_they(vq):
    found = vq.loss()[3]
    unused = np.asarray(found.shares) == 0
    usage = jnp.where(jnp.arange(6) < 2, 1e-5, 0.25)
    params, statistics = vq.bound.after_update(vq.params, {"usage": usage}, found)
    dead = np.asarray(dead_codes(usage * 0.95 + 0.05 * found.shares))
    assert (dead <= unused).all()
    kept = ~dead
    np.testing.assert_array_equal(params["codebook"][kept], vq.params["codebook"][kept])
    chex.assert_trees_all_equal({**params, "codebook": 0}, {**vq.params, "codebook": 0})
    np.testing.assert_allclose(statistics["usage"][kept], (usage * 0.95 + 0.05 * found.shares)[kept], rtol=1e-5)

    # A batch without a frame says nothing about the codes.
    nothing = vq.loss(valid=VALID & False)[3]
    params, statistics = vq.bound.after_update(vq.params, {"usage": EQUAL}, nothing)
    chex.assert_trees_all_equal((params, statistics), (vq.params, {"usage": EQUAL}))


def test_a_collapse_of_codes_is_reported_and_ends(vq):
    """All codes are alike and the first takes everything; the others die, and come back at vectors of the batch."""
    params = {**vq.params, "codebook": jnp.tile(vq.params["codebook"][:1], (6, 1))}
    statistics = {"usage": EQUAL}
    _, _, metrics, found = vq.loss(params)
    assert float(metrics["codes/used"]) == pytest.approx(1 / 6) and float(metrics["alarm/collapse"]) == 1.0
    after = jax.jit(vq.bound.after_update)
    for _ in range(91):
        params, statistics = after(params, statistics, found)
    _, _, metrics, found = vq.loss(params)
    assert float(metrics["codes/used"]) > 0.5 and float(metrics["alarm/collapse"]) == 0.0


def test_it_learns_to_tell_the_frames_of_a_clip_apart(made):
    colours = np.random.default_rng(0).integers(0, 256, (B, T, 1, 1, 3))
    images = jnp.asarray(np.broadcast_to(colours, made.images.shape), jnp.uint8)
    params, statistics = made.params, made.statistics
    after_update = jax.jit(made.bound.after_update)
    for step in range(80):
        keys = jax.random.split(jax.random.key(step), B)
        _, gradient, _, found = made.loss(params, images, keys)
        params = jax.tree.map(lambda x, g: np.asarray(x) - np.float32(0.004) * np.sign(g), params, gradient)
        params, statistics = after_update(params, statistics, found) if found else (params, statistics)
    decoded = made.decode(params, made.encode(params, images).latents)
    truth, valid = np.asarray(images) / 255, np.asarray(VALID)
    error = np.mean(np.square(decoded - truth)[valid])
    assert error < 0.5 * truth[valid].var(axis=0).mean(), "far better than any picture that stays the same"


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_inside_only(kind):
    bound = dataclasses.replace(KINDS[kind], dtype="bfloat16", window=1).bind(FIELD)
    images, keys = pictures(0), jax.random.split(jax.random.key(0), B)
    params, statistics = jax.eval_shape(bound.init, keys[0], images, VALID)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens = jax.eval_shape(bound.encode, params, images)
    assert tokens.latents.dtype == jax.eval_shape(bound.decode, params, tokens.latents).dtype == jnp.float32
    assert jax.eval_shape(bound.loss, params, statistics, keys, images, VALID)[0].dtype == jnp.float32
    assert bound.init_cache(B).keys[0].dtype == jnp.bfloat16


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"tokenizer.patch is 5, which does not divide the image \[8, 12, 3\]"):
        dataclasses.replace(SMALL, patch=5).bind(FIELD)
    with pytest.raises(ValueError, match="tokenizer takes an image, but 'vector' is float32"):
        SMALL.bind(Field("vector", (3,), "float32"))
    with pytest.raises(ValueError, match=r"tokenizer\.heads is 3, expected heads of an even size"):
        dataclasses.replace(SMALL, heads=3)
    with pytest.raises(ValueError, match=r"tokenizer.levels is \(9, 9, 9, 9, 9, 9, 9\), expected some"):
        dataclasses.replace(SMALL, levels=(9,) * 7)
    bound = SMALL.bind(FIELD)
    with pytest.raises(ValueError, match=r"image is float32\[8, 12, 3\], expected uint8\[8, 12, 3\]"):
        jax.eval_shape(bound.encode, {"encoder": {}}, jnp.zeros((1, 1, *FIELD.shape)))
    with pytest.raises(ValueError, match=r"latents have shape \(6, 2\) in a frame, expected \(6, 3\)"):
        jax.eval_shape(bound.decode, {"decoder": {}}, jnp.zeros((1, 1, 6, 2)))


def test_settings_come_from_a_configuration(monkeypatch):
    import jaxwm
    from jaxwm import models
    from jaxwm.config import parse_config

    @dataclasses.dataclass(frozen=True)
    class Family:
        spec: jaxwm.Spec
        tokenizer: Tokenizer = SMALL
        stages = (jaxwm.Stage("train"),)

    monkeypatch.setitem(models.FAMILIES, "family", Family)
    values = {"model": {"family": "family"}, "data": {"path": "x"}, "stages": {"train": {"steps": 1}}}
    spec = jaxwm.Spec((FIELD,), jaxwm.ActionSpec(2))
    overrides = ["model.tokenizer.kind=fsq", "model.tokenizer.levels=[7,5,5]", "model.tokenizer.channels=8"]
    model = jaxwm.build_model(parse_config(values, overrides).model, spec)
    assert model.tokenizer == dataclasses.replace(SMALL, kind="fsq", levels=(7, 5, 5), channels=8)
    for override, message in {
        "model.tokenizer.chanels=8": "unknown key; did you mean 'channels'",
        "model.tokenizer.kind=vqq": "'kl', 'masked', 'vq' or 'fsq'",
        "model.tokenizer.levels=[1]": "greater than or equal to 2",
        "model.tokenizer.mask=1": "less than 1",
    }.items():
        with pytest.raises(jaxwm.ConfigError, match=message):
            parse_config(values, [override])
