"""Words and their numbers, there and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import captions


def test_a_caption_can_be_read_again():
    text = "night rain two cars near red left walker crossing"
    tokens = captions.encode(text)
    assert tokens.shape == (captions.LENGTH,)
    assert tokens.dtype == np.int32
    assert captions.decode(tokens) == text
    assert len(set(captions.WORDS)) == len(captions.WORDS)


def test_sentences_are_made_of_words_that_are_chosen_under_compilation():
    made = captions.sentence(
        captions.count(jnp.int32(2)), captions.word("balls"), 0, captions.one_of(("left", "right"), jnp.int32(1))
    )
    assert captions.decode(made) == "two balls right"
    np.testing.assert_array_equal(made[4:], 0)


def test_what_cannot_be_said_is_named():
    with pytest.raises(ValueError, match=r"'bals' is not in the vocabulary; did you mean 'balls'"):
        captions.encode("two bals")
    with pytest.raises(ValueError, match="13 words, expected at most 12"):
        captions.encode("red " * 13)
    with pytest.raises(ValueError, match="13 words"):
        captions.sentence(*[1] * 13)
