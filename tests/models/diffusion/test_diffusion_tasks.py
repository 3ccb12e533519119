"""What a model is given of a window, and which actions it has to guess."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jaxwm
from jaxwm.models.diffusion import Shortcut, tasks
from jaxwm.models.diffusion.cameras import Cameras
from jaxwm.models.diffusion.frames import FrameTokens
from jaxwm.models.tokenizer import Tokenizer
from jaxwm.testing import moving_clips

KEYS = jax.random.split(jax.random.key(0), 600)
SEGMENTS = jnp.array([[1, 1, 1, 2], [1, 1, 1, 1]])
SPEC = jaxwm.Spec((jaxwm.Field("image", (8, 8, 3), "uint8"),), jaxwm.ActionSpec(2))


def test_a_noisy_frame_of_a_dream_sees_itself_and_what_is_known_before_it():
    known, noisy = np.split(np.asarray(tasks.see_dreams(SEGMENTS, window=2)), 2, axis=1)
    for seen, itself in ((known, [0] * 4), (noisy, [4] * 4)):
        expected = [[itself[0] + 0], [0, itself[1] + 1], [0, 1, itself[2] + 2], [itself[3] + 3]]
        assert [list(np.flatnonzero(row)) for row in seen[0]] == expected
    assert list(np.flatnonzero(noisy[1, 3])) == [1, 2, 7], "no more than its window"


def test_the_copies_of_a_clip_see_themselves_both_ways_and_not_each_other():
    seen = np.asarray(tasks.see_clips(SEGMENTS, window=2))
    assert [list(np.flatnonzero(row)) for row in seen[0, :4]] == [[0, 1, 2]] * 3 + [[3]]
    assert list(np.flatnonzero(seen[1, 0])) == [0, 1, 2]
    np.testing.assert_array_equal(seen[:, 4:, 4:], seen[:, :4, :4])
    assert not seen[:, 4:, :4].any()
    assert not seen[:, :4, 4:].any()


def test_a_clip_is_given_frames_or_places_or_all_or_nothing():
    known = np.asarray(tasks.known_in_clips(KEYS, 4, (4, 2), cameras=1))
    assert known.shape == (600, 4, 6)
    whole_frames = (known == known[:, :, :1]).all((1, 2))
    same_places = (known == known[:, :1]).all((1, 2))
    assert (whole_frames | same_places).all()
    assert 0.25 < known.all((1, 2)).mean() < 0.4
    assert (~known.any((1, 2))).mean() > 0.2
    for kind in (whole_frames & ~same_places, same_places & ~whole_frames):
        assert kind.mean() > 0.1


def test_half_of_the_places_of_several_cameras_are_whole_pictures():
    known = np.asarray(tasks.known_in_clips(KEYS, 3, (4, 4, 2), cameras=2))
    same_places = (known == known[:, :1]).all((1, 2)) & ~known.all((1, 2)) & known.any((1, 2))
    first = known[same_places][:, 0]
    whole = (first[:, :4] == first[:, :1]).all(1) & (first[:, 4:8] == first[:, 4:5]).all(1)
    assert 0.4 < whole.mean() < 0.75
    assert (first[:, 0] & ~first[:, 4])[whole].mean() > 0.1, "one camera is known and the other not"


def test_only_what_is_to_be_made_takes_steps():
    batch = jax.tree.map(lambda x: jnp.repeat(x, 300, axis=0), moving_clips(SPEC, 2, 4))
    frames = FrameTokens(SPEC, Cameras(Tokenizer(patch=4), SPEC.images))
    shares = {"clips": 0.5, "context_noise": 0.1, "guess_action": 0.3, "drop_action": 0.2}
    task = tasks.draw(KEYS, batch, jnp.ones((600, 4), int), Shortcut(), frames, window=2, **shares)
    assert 0.2 < task.guessed.mean() < 0.6
    np.testing.assert_array_equal(task.step[..., : frames.actions] > 0, task.guessed[..., None])
    np.testing.assert_array_equal(task.step[..., frames.actions :] > 0, task.unknown)


def test_actions_are_given_guessed_or_hidden():
    batch = jax.tree.map(lambda x: jnp.repeat(x, 300, axis=0), moving_clips(SPEC, 2, 5))
    batch = dataclasses.replace(
        batch, is_first=batch.is_first.at[:, 3].set(True), action_valid=batch.action_valid.at[:300, 0].set(False)
    )
    level, share = jnp.full((600, 5), 0.25), jnp.full((600, 1), 0.2)
    levels, guessed = (np.asarray(x) for x in tasks.draw_actions(KEYS, batch, level, share, 0.1))
    assert set(np.unique(levels)) == {0.0, 0.25, 1.0}
    # No action led to the first frame of an episode, and nobody knows the one that led from frame 0 to 1.
    assert (levels[:, 3] == 0).all()
    assert (levels[:300, 1] == 0).all()
    assert not guessed[:, 3].any()
    assert not guessed[:300, 1].any()
    known = levels[:, 2]
    assert abs((known == 1).mean() - 0.7) < 0.06
    assert abs((known == 0.25).mean() - 0.2) < 0.06
    np.testing.assert_array_equal(guessed[:, 2], known == 0.25)
