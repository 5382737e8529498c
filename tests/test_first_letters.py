"""FirstLetterAbsorption on text and autoencoders made so that the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_harvest

import sae
from sae import Activations, Experiment, Relu, Sae, Sweep, UserError
from sae.analysis.ask import Data
from sae.lm import first_letters
from sae.lm.first_letters import MOST, FirstLetterAbsorption

COMMON = ("tea", "run", "Bob")
RARE = tuple(f"t{letter}" for letter in "acdfghij")  # eight words with t, some 2.5 % each of those with t
D = 3 + len(RARE) + 1


def text(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    words = [*COMMON, *RARE]
    chances = np.array([0.28, 0.3, 0.35, *[0.07 / len(RARE)] * len(RARE)])
    return " ".join(rng.choice(words, 500, p=chances)).encode() + b" 7 +"


def rows(split, made, found):
    """A dimension for each letter, one for each rare word, and noise."""
    part = made.part(split)
    pieces = [made.pieces[i].strip() for i in part.ids[part.context, part.position]]
    x = np.zeros((len(pieces), D))
    for i, piece in enumerate(pieces):
        letter = "trb".find(piece[:1].decode().lower()) if piece else -1
        if letter >= 0:
            x[i, letter] = 4
        if piece.decode() in RARE:
            x[i, 3 + RARE.index(piece.decode())] = 4
    return (x + 0.05 * np.random.default_rng(0).normal(size=x.shape)).astype(np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    documents = [(str(i), "one", "txt", "train" if i == 0 else "held-out", text(i)) for i in range(11)]
    return tiny_harvest.write(tmp_path_factory.mktemp("letters") / "acts", documents, rows)


MEASURE = FirstLetterAbsorption(splits=2)


@pytest.fixture(scope="module")
def asked(folder):
    source = Activations(path=str(folder.path), normalize="none")
    return MEASURE._asked(Data(source, 0, source.load), D)


def made(absorbs: bool, writes: bool) -> Sae:
    """Latents of three letters and of the rare words. That of t may be silent on these, and theirs may write t."""
    W_enc, W_dec = np.eye(D)[:-1].copy(), np.eye(D)[:-1].copy()
    if absorbs:
        W_enc[0, 3:-1] = -1
    if writes:
        W_dec[3:, 0] = 1
    b_enc = np.full(len(W_enc), -1.0)
    return Sae(*(jnp.asarray(a, jnp.float32) for a in (W_enc, b_enc, W_dec, np.zeros(D))), Relu())


count = jax.jit(first_letters.of_member)


def test_the_letters_of_words_by_hand(folder):
    found = first_letters.letters(folder)
    part = folder.part("held-out")
    pieces = [folder.pieces[i] for i in part.ids[part.context, part.position]]
    letter = {b" tea": 19, b" run": 17, b" Bob": 1, b" ta": 19, b" 7": -1, b" +": -1}
    seen = set()
    for piece, value in zip(pieces, found, strict=True):
        if piece in letter:
            assert value == letter[piece]
            seen.add(piece)
    assert len(seen) >= 5


def test_rows_are_words_and_probes_know_their_letters(asked):
    x, problems, scores, _ = asked
    assert scores.shape == (6, len(x)) and 3_000 < len(x) <= 5_000  # b, r and t, twice each
    right = (scores > 0) == (problems.y > 0)
    assert right.mean() > 0.999
    assert not ((problems.train > 0) & (problems.test > 0)).any()


def test_absorption_is_the_share_of_the_words_that_are_absorbed(asked):
    x, problems, scores, directions = asked
    found = count(made(absorbs=True, writes=True), *asked)
    rare = np.asarray(x)[:, 3:-1].max(axis=1) > 2
    test = np.asarray(problems.test) > 0
    for i in range(6):
        words = test[i] & (np.asarray(problems.y[i]) > 0)
        assert found["present"][i] == words.sum()
        expected = (words & rare).sum() if i >= 4 else 0  # the letters are in the order b, r, t
        assert found["absorbed"][i] == found["missed"][i] == expected
        assert found["main"][i] == 1
    assert found["absorbed"][4:].min() > 40


def test_latents_that_never_fall_silent_absorb_nothing(asked):
    found = count(made(absorbs=False, writes=True), *asked)
    assert (found["missed"] == 0).all() and (found["absorbed"] == 0).all()


def test_a_letter_that_nobody_writes_is_missed_but_not_absorbed(asked):
    found = count(made(absorbs=True, writes=False), *asked)
    assert found["missed"][4:].min() > 40 and (found["absorbed"] == 0).all()


def test_a_letter_whose_words_share_two_latents_is_split(asked):
    """Half of the words with b have one latent and half the other: both are main latents, and none is missed."""
    x, problems, scores, directions = asked
    side = jnp.sign(x[:, -1])  # noise decides
    x = x.at[:, -1].set(side)
    one = made(absorbs=False, writes=False)
    W = np.array(one.W_enc)
    W[3], W[2] = W[2], W[2]
    W[2, -1], W[3, -1] = 4, -4
    split = Sae(jnp.asarray(W), jnp.full(len(W), -4.5), jnp.asarray(W), jnp.zeros(D), Relu())
    found = count(split, x, problems, scores, directions)
    assert (found["main"][:2] == 2).all() and (found["main"] <= MOST).all()
    assert (found["missed"][:2] == 0).all()


def test_a_sweep_asks_it(folder, tmp_path):
    data = Activations(path=str(folder.path))
    one = Experiment(name="letters", data=data, d_sae=16, batch_size=64, n_steps=20)
    table = sae.run(Sweep(name="letters", members=[one], measures=[MEASURE]), out=tmp_path / "run", wandb="off").members
    assert table[list(MEASURE.columns)].notna().all().all()
    assert table["analysis/letters_asked"][0] == 3 and table["analysis/letters_probe"][0] > 0.99
    assert 0 <= table["analysis/letters_absorbed"][0] <= table["analysis/letters_missed"][0] <= 1


def test_too_little_text_is_refused_in_a_line(folder):
    source = Activations(path=str(folder.path))
    with pytest.raises(UserError, match="no letter begins 100000 words in each half"):
        FirstLetterAbsorption(least=100_000)._asked(Data(source, 0, source.load), D)
