"""Dreams as environments: rewards, ends and beginnings, computed by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ladder
import numpy as np
import pytest

from jaxwm.acting import play_world
from jaxwm.envs import CompiledEnvironments, DreamEnvironments, WorldEnvironments, load_dream, starts_of
from jaxwm.types import ActionSpec, Field, Spec, example_batch
from jaxwm.worlds import Bounce


def keys(seed, count=1):
    return jax.random.split(jax.random.key(seed), count)


reset = jax.jit(DreamEnvironments.reset)
advance = jax.jit(DreamEnvironments.step)


def walk(dream, choices, count=1):
    state, step = reset(dream, keys(0, count))
    yield step
    for seed, choice in enumerate(choices, 1):
        state, step = advance(
            dream, keys(seed, count), state, np.tile(np.eye(3, dtype=np.float32)[choice], (count, 1))
        )
        yield step


def test_rewards_come_with_the_frame_they_led_to_and_a_dream_ends_at_its_length():
    dream = ladder.make(length=4, starts=(3.0,))
    assert isinstance(dream, CompiledEnvironments)
    steps = list(walk(dream, [1, 2, 0, 2, 1]))
    assert [float(step.observation["vector"][0, 0]) for step in steps] == [3, 4, 6, 6, 3, 4]
    assert [float(step.reward[0]) for step in steps] == [0, 4, 6, 6, 0, 4]
    assert [bool(step.is_first[0]) for step in steps] == [True, False, False, False, True, False]
    assert [bool(step.is_last[0]) for step in steps] == [False, False, False, True, False, False]
    assert not any(step.is_terminal[0] for step in steps)
    assert [int(step.observation["image"][0, 0, 0, 0]) for step in steps] == [76, 102, 153, 153, 76, 102]
    for step in steps:
        dream.spec.check_observation(step.observation, (1,))


def test_a_dream_ends_by_a_draw_from_the_continuation():
    *_, step = walk(ladder.make(stay=0.7), [1], count=4000)
    assert abs(float(step.is_terminal.mean()) - 0.3) < 0.03  # four standard errors
    assert (step.is_last == step.is_terminal).all()
    assert (step.reward == 1).all()  # the last reward counts
    *_, step = walk(ladder.make(stay=0.7, temperature=0.0), [1], count=4000)
    assert not step.is_terminal.any()
    *_, step = walk(ladder.make(stay=0.3, temperature=0.0), [1], count=4000)
    assert step.is_terminal.all()
    *_, step = walk(ladder.make(stay=0.7, temperature=2.0), [1], count=4000)
    assert abs(float(step.is_terminal.mean()) - 1 / (1 + np.sqrt(7 / 3))) < 0.035


def test_rows_that_ended_begin_anew_whatever_the_others_do():
    steps = list(walk(ladder.make(stay=0.5), [1] * 6, count=4000))
    for before, after in itertools.pairwise(steps):
        ended = np.asarray(before.is_last)
        np.testing.assert_array_equal(after.is_first, ended)
        height = lambda step: np.asarray(step.observation["vector"][:, 0])  # noqa: E731
        np.testing.assert_array_equal(height(after), np.where(ended, 0, height(before) + 1))
        assert not after.reward[ended].any()
        assert not after.is_terminal[ended].any()


def test_dreams_begin_in_any_of_the_given_states():
    _, step = ladder.make(starts=(0.0, 5.0, 7.0)).reset(keys(0, 600))
    heights, counts = np.unique(step.observation["vector"][:, 0], return_counts=True)
    assert heights.tolist() == [0, 5, 7]
    assert counts.min() > 150


def test_temperature_reaches_the_model_and_a_model_without_continuation_never_ends():
    *_, step = walk(ladder.make(temperature=0.5), [0], count=4000)
    assert abs(float(step.observation["vector"][:, 1].std()) - 0.5) < 0.03
    *_, step = walk(ladder.make(stay=0.0, continues=False), [0])
    assert not step.is_terminal.any()


def test_uncertainty_is_penalised_or_paid_for():
    assert [float(step.reward[0]) for step in walk(ladder.make(penalty=0.5), [1, 2])] == [0, 1 - 0.5, 3 - 4.5]
    assert [float(step.reward[0]) for step in walk(ladder.make(penalty=-1.0), [1, 2])] == [0, 2, 12]
    with pytest.raises(ValueError, match="nothing of its uncertainty"):
        ladder.make(penalty=0.0, doubts=False).reset(keys(0))


def test_features_in_place_of_the_observation():
    dream = ladder.make(show="features", starts=(2.0,))
    assert dream.spec == Spec((Field("features", (3,), "float32"),), ActionSpec(3, discrete=True))
    steps = list(walk(dream, [1]))
    assert [step.observation["features"][0, 2] for step in steps] == [102, 103]
    state, _ = dream.reset(keys(0, 2))
    picture = dream.picture(state)
    assert (picture.shape, picture.dtype, int(picture[0, 0, 0, 0])) == ((2, 2, 3, 1), jnp.uint8, 51)


def test_other_variables_compile_nothing_anew():
    traces = []

    @jax.jit
    def first(dream):
        traces.append(1)
        return dream.step(keys(1), dream.reset(keys(0))[0], jnp.eye(3)[:1])[1]

    assert not first(ladder.make(stay=1.0)).is_terminal[0]
    assert first(ladder.make(stay=0.0, temperature=0.5)).is_terminal[0]
    assert len(traces) == 1


def test_an_agent_plays_in_dreams_as_in_worlds():
    played = play_world(ladder.Climber(), None, jax.random.key(0), ladder.make(length=4), 5, record=True)
    assert played.score.tolist() == [2 + 4 + 6] * 5
    assert played.length.tolist() == [3] * 5
    assert played.trajectory.reward[0].tolist() == [2, 4, 6, 0]
    assert played.trajectory.info == {}
    world = WorldEnvironments(Bounce(size=8), 4)
    info = jax.eval_shape(lambda: world.info(world.reset(keys(0, 2))[0]))
    assert info["position"].shape[0] == 2


def test_starts_are_what_the_model_knows_after_the_frames_it_was_shown():
    batch = example_batch(ladder.SPEC, 4, 3)
    vector = jnp.arange(24.0).reshape(4, 3, 2)
    valid = jnp.array([[True] * 3, [True, True, False], [True] * 3, [False] * 3])
    terminal = jnp.zeros((4, 3), bool).at[2, 2].set(True)
    batch = batch.replace(observation={**batch.observation, "vector": vector}, valid=valid, is_terminal=terminal)
    variables = {"params": {"stay": 1.0}}
    states = starts_of(ladder.Ladder(), variables, jax.random.key(0), batch)
    assert states.tolist() == [vector[0, 2].tolist(), vector[1, 1].tolist()]
    with pytest.raises(ValueError, match="no dream can begin"):
        starts_of(ladder.Ladder(), variables, jax.random.key(0), batch.replace(valid=jnp.zeros((4, 3), bool)))


def test_a_run_dreams_of_the_episodes_it_was_trained_on(toy_run, toy_run_dir):
    dream = load_dream(toy_run_dir, length=7, starts=5, context=2, seed=3)
    assert (dream.length, dream.starts.shape) == (7, (5, 16, 16, 3))
    from jaxwm.evaluation.runs import matching_split

    frames = matching_split(toy_run.config, toy_run.spec, "train", 5).windows(range(5), [1] * 5, 1)
    expected = {bytes(image) for image in np.asarray(frames.observation["image"][:, 0])}
    assert {bytes(image) for image in np.round(np.asarray(dream.starts) * 255).astype(np.uint8)} == expected
    moved = load_dream(toy_run, starts=5, context=2, seed=3, anywhere=True)
    assert not np.array_equal(moved.starts, dream.starts)
    with pytest.raises(ValueError, match="this model predicts no reward"):
        dream.reset(keys(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "length is 1, expected at least 2"),
        ({"show": "pixels"}, "show is 'pixels', expected 'observation' or 'features'"),
        ({"starts": 0}, "starts is 0, expected at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0, expected at least 0"),
    ],
)
def test_mistakes_are_one_line(toy_run, settings, message):
    with pytest.raises(ValueError, match=message):
        load_dream(toy_run, **settings)


def test_a_model_that_reads_conditions_is_told_none():
    spec = dataclasses.replace(ladder.SPEC, condition=(Field("weather", (1,), "float32"),))
    heights = [
        [step.observation["vector"] for step in walk(ladder.make(**own), [1, 2])] for own in ({}, {"spec": spec})
    ]
    np.testing.assert_array_equal(*heights)


def test_a_world_without_images_has_no_pictures():
    with pytest.raises(ValueError, match="shows no images"):
        vectors = Spec(ladder.SPEC.vectors, ladder.SPEC.action)
        dream = ladder.make(spec=vectors)
        dream.picture(dream.reset(keys(0))[0])
