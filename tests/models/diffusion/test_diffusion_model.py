"""One network, two uses: frame by frame with a cache, and whole clips of which any part is known."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_variables

import jaxwm
from jaxwm.models.diffusion import DiffusionModel, Shortcut, mix
from jaxwm.models.diffusion import tasks as diffusion_tasks
from jaxwm.models.tokenizer import Tokenizer
from jaxwm.testing import moving_clips

SPEC = jaxwm.Spec(
    (jaxwm.Field("image", (16, 16, 3), "uint8"), jaxwm.Field("speed", (3,), "float32")),
    jaxwm.ActionSpec(2, low=(-1.0, 0.0), high=(1.0, 4.0)),
)
MODEL = DiffusionModel(
    SPEC,
    Tokenizer(width=16, blocks=1, heads=2, channels=4),
    Shortcut(halvings=3),
    width=24,
    blocks=1,
    heads=2,
    window=2,
    units=8,
    steps=2,
    context_noise=0.0,
)
ROWS, LENGTH = 3, 5


@pytest.fixture(scope="module")
def batch():
    return moving_clips(SPEC, ROWS, LENGTH)


@pytest.fixture(scope="module")
def variables(batch):
    return draw_variables(MODEL, batch)


@pytest.fixture(scope="module")
def make(variables):
    """`DiffusionModel.sample`, compiled once for each kind of levels."""

    @jax.jit
    def run(trajectory, known, steps):
        return MODEL.sample(variables, jax.random.key(2), trajectory, known, steps=steps)

    return lambda trajectory, steps=2, **known: run(trajectory, known, steps)


def test_frame_by_frame_with_the_cache_is_the_same_as_all_at_once(variables, batch):
    observed = jaxwm.observe_sequence(MODEL, variables, jax.random.key(3), batch, return_states=True)
    latents = MODEL.coder.encode(variables["params"]["tokenizer"], batch.observation, jnp.zeros((ROWS, LENGTH), int))
    tokens = MODEL.frames.join(batch.previous_actions(), latents, batch.observation)
    np.testing.assert_allclose(observed.states.tokens, tokens, atol=1e-5)
    level = jnp.ones(tokens.shape[:-1]).at[:, 0, : MODEL.frames.actions].set(0.0)
    # No action led to the first frame: what stands there is noise, here the noise that the cache was given.
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(3), row), 0))(jnp.arange(ROWS))
    noise = jnp.zeros_like(tokens).at[:, 0].set(MODEL._noise(keys))
    step = jnp.full(level.shape, MODEL.objective.smallest)
    summary = MODEL._network(variables)(mix(MODEL.objective, tokens, noise, level), level, step)[1]
    assert float(jnp.abs(summary).max()) > 0.1
    np.testing.assert_allclose(observed.features[..., -MODEL.width :], summary, atol=1e-5)


def test_what_is_learned_is_what_a_step_of_a_dream_asks(variables, batch):
    """The noisy copy of a window beside its known one, against the cache: the same frames in view, the same answer."""
    learned = []

    class Watched(Shortcut):
        def loss(self, network, clean, noise, level, step):
            learned.append((network, mix(self, clean, noise, level), level, step))
            return super().loss(network, clean, noise, level, step)

    objective = Watched(halvings=MODEL.objective.halvings)
    model = dataclasses.replace(MODEL, clips=0.0, drop_action=0.0, guess_action=0.0, objective=objective)
    begins = batch.is_first.at[1, 2].set(True)

    @jax.jit
    def answers(variables):
        model.loss(variables, jax.random.split(jax.random.key(8), ROWS), batch.replace(is_first=begins), "dynamics")
        network, noisy, level, step = learned[0]
        state, asked = MODEL.init_state(ROWS), []
        for t in range(LENGTH):
            state = state.replace(cache=state.cache.forget(begins[:, t]))
            ask = MODEL._next_frame(variables, state.cache)
            asked.append(ask(*(x[:, LENGTH + t] for x in (noisy, level, step))))
            state = MODEL._take_in(variables, noisy[:, t], state, noisy[:, t], level[:, t, 0] == 1.0)
        return level[:, :LENGTH], network(noisy, level, step)[0][:, LENGTH:], jnp.stack(asked, axis=1)

    level, expected, asked = answers(variables)
    assert (level[..., MODEL.frames.actions :] == 1.0).all(), "the first copy is known"
    assert float(jnp.abs(expected).max()) > 0.1
    np.testing.assert_allclose(asked, expected, atol=1e-5)


@pytest.mark.parametrize(("clips", "expected"), [(0.0, (0.1 + 0.1 + 3.0) / LENGTH), (0.999, 0.1)])
def test_errors_count_in_full_where_two_frames_come_before(variables, batch, clips, expected):
    """All of them are 1 here, of noise alone: what is left are the weights, 0.1 for the first two frames and clips."""

    class Even(Shortcut):
        def draw(self, keys, frames):
            return jnp.zeros((len(keys), frames)), jnp.full((len(keys), frames), self.smallest)

        def loss(self, network, clean, noise, level, step):
            return jnp.where(level < 1.0, 1.0, 0.0), network(noise, level, step)[1]

    model = dataclasses.replace(MODEL, clips=clips, objective=Even(halvings=MODEL.objective.halvings))
    loss = jax.jit(lambda keys: model.loss(variables, keys, batch, "dynamics")[1].metrics["loss/frames"])
    np.testing.assert_allclose(loss(jax.random.split(jax.random.key(9), ROWS)), expected, rtol=1e-5)


def test_errors_of_actions_are_means_over_their_own_numbers(variables, batch, monkeypatch):
    """Not over the padding of their tokens: an error of 1 in two numbers out of four counts as 1."""
    tasks, draw = [], diffusion_tasks.draw
    monkeypatch.setattr(
        diffusion_tasks, "draw", lambda *given, **named: tasks.append(draw(*given, **named)) or tasks[-1]
    )

    class Halves(Shortcut):
        def loss(self, network, clean, noise, level, step):
            return jnp.full(level.shape, 0.5), network(noise, level, step)[1]

    model = dataclasses.replace(MODEL, guess_action=0.5, objective=Halves(halvings=MODEL.objective.halvings))
    assert (MODEL.frames.channels, MODEL.spec.action.dim) == (4, 2)

    @jax.jit
    def losses(keys):
        found = model.loss(variables, keys, batch, "dynamics")[1].metrics["loss/actions"]
        return found, jnp.mean(tasks[0].guessed)

    found, share = losses(jax.random.split(jax.random.key(9), ROWS))
    assert share > 0.1
    np.testing.assert_allclose(found, share, rtol=1e-5)


def test_no_step_is_told_that_is_smaller_than_those_that_were_learned():
    smallest = MODEL.objective.smallest
    told = MODEL._told(jnp.array([[0.5, smallest], [smallest / 8, 0.0]]))
    np.testing.assert_array_equal(told, [0.5, smallest])


def test_all_sizes_of_a_step_get_the_same_answer_until_they_are_taught_apart(variables):
    denoiser, params = MODEL._denoiser, variables["params"]["denoiser"]
    shape = (1, 2, sum(denoiser.groups))
    tokens, level = jax.random.normal(jax.random.key(5), (*shape, 4)), jnp.full(shape, 0.3)
    fresh = jax.jit(denoiser.init)(jax.random.key(6), tokens, level, jnp.ones(shape[:2]))["params"]["step"]

    @jax.jit
    def answer(params, step):
        return denoiser.apply({"params": params}, tokens, level, jnp.full(shape[:2], step))[0]

    begun = {**params, "step": fresh}
    np.testing.assert_array_equal(answer(begun, 1.0), answer(begun, 0.125))
    assert jnp.abs(answer(params, 1.0) - answer(params, 0.125)).max() > 0.01


def test_what_is_known_comes_back_to_the_last_bit(make, batch):
    frames = jnp.zeros((ROWS, LENGTH)).at[:, [0, 3]].set(1.0)
    made = make(batch, image=frames, speed=frames, action=jnp.ones((ROWS, LENGTH)))
    for name in ("image", "speed"):
        np.testing.assert_array_equal(made.observation[name][:, [0, 3]], batch.observation[name][:, [0, 3]])
        assert (made.observation[name][:, 1] != batch.observation[name][:, 1]).any()
    np.testing.assert_array_equal(made.action, batch.action)
    pixels = jnp.zeros((ROWS, LENGTH, 16, 16)).at[:, :, :9, 3:].set(1.0)
    inpainted = make(batch, image=pixels)
    same = np.asarray(inpainted.observation["image"] == batch.observation["image"]).all(-1)
    assert same[:, :, :9, 3:].all()
    assert not same[:, :, 9:].all()


def test_what_is_unknown_has_no_effect_and_what_is_known_has_everywhere(make, batch):
    frames = jnp.zeros((ROWS, LENGTH)).at[:, 3].set(1.0)
    nothing = jnp.zeros((ROWS, LENGTH))
    made = make(batch, image=frames, speed=frames, action=nothing)

    def changed(time):
        image = batch.observation["image"].at[:, time].set(255 - batch.observation["image"][:, time])
        speed = batch.observation["speed"].at[:, time].add(3.0)
        return batch.replace(observation={"image": image, "speed": speed})

    again = make(changed(1).replace(action=0.5 * batch.action), image=frames, speed=frames, action=nothing)
    chex.assert_trees_all_equal(made.observation, again.observation)
    # The last action belongs to nothing in the clip and comes back as it is.
    chex.assert_trees_all_equal(made.action[:, :-1], again.action[:, :-1])
    other = make(changed(3), image=frames, speed=frames, action=nothing)
    differs = np.abs(other.observation["speed"] - made.observation["speed"]).max((0, 2)) > 1e-6
    assert differs.all(), "a known frame is seen by those before it as well"


def test_actions_can_be_made_from_frames(make, batch):
    full = jnp.ones((ROWS, LENGTH))
    made = make(batch, image=full, speed=full)
    chex.assert_trees_all_equal(made.observation, batch.observation)
    assert (made.action[:, :-1] != batch.action[:, :-1]).any()
    low, high = np.array([-1.0, 0.0]), np.array([1.0, 4.0])
    assert ((made.action >= low - 1e-6) & (made.action <= high + 1e-6)).all()


def test_guidance_one_is_none_and_more_goes_further(variables, batch):
    seen = jaxwm.observe_sequence(MODEL, variables, jax.random.key(4), batch).final_state
    action, keys = batch.action[:, 0], jax.random.split(jax.random.key(5), ROWS)

    @jax.jit
    def tokens(guidance):
        condition = {} if guidance is None else {"guidance": guidance}
        return MODEL.predict(variables, keys, seen, action, condition).tokens

    plain = tokens(None)
    np.testing.assert_allclose(tokens(jnp.ones(ROWS)), plain, atol=1e-5)
    some, more = (np.abs(tokens(jnp.full(ROWS, g)) - plain).mean() for g in (1.5, 3.0))
    assert 1e-4 < some < more


def test_video_without_actions_is_learned_from_without_them(variables, batch):
    loss = jax.jit(
        lambda batch: MODEL.loss(variables, jax.random.split(jax.random.key(6), ROWS), batch, "dynamics")[0]
    )
    silent = batch.replace(action_valid=jnp.zeros_like(batch.action_valid))
    assert loss(silent) == loss(silent.replace(action=-batch.action))
    assert loss(batch) != loss(batch.replace(action=0.5 * batch.action))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"imag": np.ones((ROWS, LENGTH))}, r"known\['imag'\] is not part of the spec; did you mean 'image'?"),
        ({"image": np.ones((ROWS, 4))}, r"known\['image'\] has shape \(3, 4\), expected \(3, 5\) or \(3, 5, 16, 16\)"),
        ({"action": np.ones((ROWS, LENGTH, 2))}, r"known\['action'\] has shape \(3, 5, 2\), expected \(3, 5\)"),
    ],
)
def test_levels_of_what_is_not_there_are_refused(variables, batch, known, message):
    with pytest.raises(ValueError, match=message):
        MODEL.sample(variables, jax.random.key(0), batch, known)


def test_impossible_models_are_refused():
    vectors = jaxwm.Spec((jaxwm.Field("speed", (3,), "float32"),), SPEC.action)
    with pytest.raises(ValueError, match="images of one shape, but this world shows none"):
        DiffusionModel(vectors)
    with pytest.raises(ValueError, match="leave no action that is known"):
        dataclasses.replace(MODEL, drop_action=0.6, guess_action=0.4)
    with pytest.raises(ValueError, match=r"tokenizer\.patch is 7, which does not divide"):
        dataclasses.replace(MODEL, tokenizer=Tokenizer(patch=7))
