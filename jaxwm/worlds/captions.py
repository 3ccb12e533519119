"""What worlds say about themselves: sentences of a fixed length over a small vocabulary, as numbers of words."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array, nearest

LENGTH = 12
"""Words in a caption; shorter ones are filled up with the first word, which is empty."""

WORDS = (
    "",
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    *("red", "green", "blue", "yellow", "white"),
    *("ball", "balls", "car", "cars", "walker"),
    *("left", "right", "ahead", "away", "near", "crossing", "waiting", "rolls", "stands", "in", "sight"),
    *("clear", "rain", "fog", "snow", "day", "dusk", "night"),
)
"""The vocabulary of all worlds. Word 0 is silence: a model that is told nothing is told that."""

_NUMBER = {word: number for number, word in enumerate(WORDS)}


def encode(text: str) -> np.ndarray:
    """``[LENGTH]`` int32: the words of ``text``, separated by spaces.

    Raises:
      ValueError: a word that no world knows, or too many of them.
    """
    words = text.split()
    for word in words:
        if word not in _NUMBER:
            raise ValueError(f"the word {word!r} is not in the vocabulary; {nearest(word, WORDS[1:])}")
    if len(words) > LENGTH:
        raise ValueError(f"{len(words)} words, expected at most {LENGTH}: {text!r}")
    return np.array([_NUMBER[word] for word in words] + [0] * (LENGTH - len(words)), np.int32)


def decode(tokens: Sequence[int] | np.ndarray) -> str:
    """The text of ``[LENGTH]`` numbers of words."""
    return " ".join(WORDS[int(token)] for token in tokens if int(token))


def word(text: str) -> int:
    """The number of one word."""
    return _NUMBER[text]


def one_of(words: Sequence[str], index: Array) -> Array:
    """The number of the word of ``words`` at ``index``, an int32 array of any shape."""
    return jnp.asarray([_NUMBER[text] for text in words], jnp.int32)[index]


def count(number: Array) -> Array:
    """The number of the word for ``number``, from 0 to 8."""
    return jnp.asarray(number, jnp.int32) + _NUMBER["no"]


def sentence(*words: Array | int) -> Array:
    """``[LENGTH]`` int32: these numbers of words, the rest empty."""
    if len(words) > LENGTH:
        raise ValueError(f"{len(words)} words, expected at most {LENGTH}")
    filled = [*words, *[0] * (LENGTH - len(words))]
    return jnp.stack([jnp.asarray(token, jnp.int32) for token in filled])
