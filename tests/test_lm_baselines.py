"""What a trained autoencoder must beat, on harvested activations: parts held at random.

Raw neurons and principal components are in test_initialization.py.
"""

import numpy as np
import pytest
import tiny_harvest
from test_probing import documents, rows

import sae
from sae import Activations, Adam, Experiment, Free, Sweep, TopK, replace
from sae.core import model


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tiny_harvest.write(tmp_path_factory.mktemp("acts") / "acts", documents(), rows)
    base = Experiment(
        name="baselines", data=Activations(path=str(folder.path)), d_sae=24, activation=TopK(k=3), constraint=Free(),
        optimizer=Adam(lr=3e-2), batch_size=128, n_steps=100,
    )  # fmt: skip
    held = [Free(frozen="decoder"), Free(cosine=0.8), Free(frozen="encoder")]
    changes = [{}, *({"constraint": one} for one in held)]
    sweep = Sweep(name="baselines", members=[replace(base, change) for change in changes])
    return sae.run(sweep, out=tmp_path_factory.mktemp("run") / "run", wandb="off")


def test_what_is_held_stays_where_it_was(results):
    free, decoder, near, encoder = (results.sae(i) for i in range(4))
    start = decoder.W_dec[...]
    cosines = lambda one: np.sum(model.unit_rows(one.W_dec[...]) * start, axis=1)
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(encoder.W_enc[...], start)  # an encoder begins as its decoder does
    assert cosines(near).min() >= 0.8 - 1e-5 and 0.8 > cosines(free).min() + 0.01
    assert np.abs(decoder.W_enc[...] - start).max() > 0.01 and np.abs(encoder.W_dec[...] - start).max() > 0.01


def test_training_beats_them_here(results):
    fvu = results.members["eval/fvu"]
    assert (fvu[0] < fvu[1:]).all() and fvu.notna().all()
    assert (results.members["eval/l0"] <= 3.01).all()
