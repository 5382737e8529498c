"""The parameters before the first step: random, along data, or given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from sklearn.decomposition import PCA

import sae
from sae import AxisRows, DataRows, Free, GivenWeights, PrincipalRows, RandomRows, UnitNorm, UserError, train
from sae.core import model
from sae.core.definitions import flatten
from sae.experiment import validate

X = jax.random.normal(jax.random.key(0), (64, 200)) + 1
DATA = {"mean": X.mean(1), "zero": jnp.zeros(64)}


def start(experiment, x=X) -> sae.Sae:
    return train.init(validate(experiment), x).sae


def test_the_default_is_unit_rows_with_the_encoder_equal_to_the_decoder(tiny):
    one = start(tiny)
    W = jax.random.normal(jax.random.key(0), (48, 64))
    np.testing.assert_array_equal(one.W_dec[...], model.unit_rows(W))
    np.testing.assert_array_equal(one.W_enc[...], one.W_dec[...])
    for name in ("b_enc", "b_dec"):
        np.testing.assert_array_equal(getattr(one, name)[...], 0)


@pytest.mark.parametrize("initialization", [RandomRows(), RandomRows(encoder="random"), DataRows(encoder="random")])
@pytest.mark.parametrize("d_sae", [48, 41])
def test_a_width_is_a_prefix_of_twice_the_width_at_equal_seed(initialization, d_sae, tiny):
    base = sae.replace(tiny, {"initialization": initialization, "seed": 5, "d_sae": d_sae})
    narrow, wide = start(base), start(sae.replace(base, {"d_sae": 2 * d_sae}))
    for name in ("W_enc", "W_dec"):
        rows = getattr(wide, name)[...][:d_sae]  # sums of other shapes are rounded otherwise
        np.testing.assert_allclose(getattr(narrow, name)[...], rows, rtol=1e-6)
    assert not np.array_equal(narrow.W_dec[...], start(sae.replace(base, {"seed": 6})).W_dec[...])


def test_norms_and_scale_are_what_they_say_and_vary_in_one_program(tiny):
    base = sae.replace(tiny, {"constraint": Free(), "initialization": RandomRows(decoder_norm=0.1, encoder_scale=3.0)})
    one, unit = start(base), start(tiny)
    np.testing.assert_allclose(one.W_dec[...], 0.1 * unit.W_dec[...], rtol=1e-6)
    np.testing.assert_allclose(one.W_enc[...], 0.3 * unit.W_dec[...], rtol=1e-6)
    own = start(sae.replace(base, {"initialization.encoder": "random"}))
    np.testing.assert_array_equal(own.W_dec[...], one.W_dec[...])
    np.testing.assert_allclose(np.linalg.norm(own.W_enc[...], axis=1), 0.3, rtol=1e-5)
    assert np.abs(np.sum(own.W_enc[...] * own.W_dec[...], axis=1)).max() < 0.03 * 0.6, "unrelated directions"
    other = sae.replace(base, {"initialization.decoder_norm": 0.5})
    assert jax.tree.structure(other) == jax.tree.structure(base)


@pytest.mark.parametrize("b_dec", ["mean", "zero"])
def test_data_rows_point_at_different_training_examples(b_dec, tiny):
    one = start(sae.replace(tiny, {"initialization": DataRows(), "b_dec_init": b_dec}))
    away = np.asarray(X.T - DATA[b_dec])
    away = away / np.linalg.norm(away, axis=1, keepdims=True)
    cosines = np.asarray(one.W_dec[...]) @ away.T
    np.testing.assert_allclose(cosines.max(1), 1, atol=1e-5)
    assert len(set(cosines.argmax(1))) == 48
    few = start(sae.replace(tiny, {"initialization": DataRows()}), X[:, :30])
    assert len(np.unique(np.asarray(few.W_dec[...]), axis=0)) == 48, "beyond the examples, rows are random"
    blank = start(sae.replace(tiny, {"initialization": DataRows()}), X.at[:, 10:].set(0))
    np.testing.assert_allclose(np.linalg.norm(blank.W_dec[...], axis=1), 1, rtol=1e-5)
    assert len(np.unique(np.asarray(blank.W_dec[...]), axis=0)) == 48, "an example of 0 is no direction"


def test_axes_and_components_go_both_ways_and_what_is_beyond_them_is_dead(tiny):
    axes = start(sae.replace(tiny, {"initialization": AxisRows(), "d_sae": 130, "b_dec_init": "mean"}))
    np.testing.assert_array_equal(axes.W_dec[...][:4, :2], [[1, 0], [-1, 0], [0, 1], [0, -1]])
    np.testing.assert_array_equal(axes.W_dec[...][128:], 0)
    few = start(sae.replace(tiny, {"initialization": AxisRows(), "d_sae": 48}))
    np.testing.assert_array_equal(few.W_dec[...], axes.W_dec[...][:48])
    stretched = X * jnp.linspace(1, 3, 64)[:, None]
    parts = start(sae.replace(tiny, {"initialization": PrincipalRows(), "b_dec_init": "mean"}), stretched).W_dec[...]
    expected = PCA(24).fit(np.asarray(stretched.T)).components_
    np.testing.assert_allclose(np.abs(np.sum(parts[::2] * expected, axis=1)), 1, atol=1e-4)
    np.testing.assert_array_equal(parts[1::2], -parts[::2])


def test_untrained_components_are_pca_and_untrained_axes_keep_what_they_are_given(tiny, tmp_path):
    still = {"b_dec_init": "mean", "optimizer": sae.Adam(lr=0.0), "penalty.l1": 0.0, "n_steps": 1}
    pca = sae.replace(tiny, {**still, "initialization": PrincipalRows()})
    axes = sae.replace(tiny, {**still, "initialization": AxisRows(), "d_sae": 128})
    few = sae.replace(axes, {"activation": sae.TopK(k=7)})
    members = sae.run(sae.Sweep(name="still", members=[pca, axes, few]), out=tmp_path / "run", wandb="off").members
    rows = tiny.data.load()
    x, held_out = rows.training_examples(), rows.examples(rows.held_out[:])
    variation = ((held_out - held_out.mean(0)) ** 2).sum()
    projected = (fit := PCA(24).fit(x)).inverse_transform(fit.transform(held_out))
    away = held_out - x.mean(0)
    smallest = np.sort(away**2, axis=1)[:, :-7]  # all but the seven largest dimensions
    expected = [((held_out - projected) ** 2).sum() / variation, 0.0, smallest.sum() / variation]
    np.testing.assert_allclose(members["eval/fvu"], expected, atol=2e-3)
    np.testing.assert_allclose(members["eval/l0"][2], 7, atol=0.2)


@pytest.mark.parametrize("initialization", [RandomRows(), DataRows()])
def test_a_transcoder_of_one_width_starts_with_an_encoder_of_its_own(initialization, tiny):
    changes = {"task": sae.Transcoder(), "apply_b_dec_to_input": False, "initialization": initialization}
    one = train.init(validate(sae.replace(tiny, changes)), X, (32, 32)).sae
    cosines = np.sum(one.W_enc[...] * one.W_dec[...], axis=1)
    assert one.W_enc[...].shape == one.W_dec[...].shape == (48, 32)
    assert np.abs(cosines).max() < 0.9 and np.abs(cosines.mean()) < 0.1


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (48, 64), "W_dec": (48, 64), "b_enc": (48,), "b_dec": (64,), "own.threshold": (48,)}
    values = {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    safetensors.numpy.save_file(values, tmp_path / "given.safetensors")
    return tmp_path / "given.safetensors", values


def test_given_weights_are_those_of_the_file_within_the_constraint(tiny, file):
    path, values = file
    base = sae.replace(tiny, {"initialization": GivenWeights(path=str(path)), "constraint": Free()})
    one = start(sae.replace(base, {"activation": sae.JumpRelu()}))
    for name, value in model.parameters(one).items():
        np.testing.assert_array_equal(value, values[name], err_msg=name)
    np.testing.assert_array_equal(start(base).W_dec[...], values["W_dec"])  # own.threshold is no parameter of a ReLU
    frozen = validate(sae.replace(base, {"constraint": Free(frozen="decoder")}))
    after, _ = train.step(frozen, train.init(frozen, X), jnp.int32(0), X)
    np.testing.assert_array_equal(after.sae.W_dec[...], values["W_dec"])


def test_the_checksum_of_given_weights_is_kept_and_other_weights_are_refused(tiny, file):
    path, values = file
    tiny = sae.replace(tiny, {"constraint": Free()})
    e = validate(sae.replace(tiny, {"initialization": GivenWeights(path=str(path))}))
    assert len(flatten(e)["initialization.sha256"]) == 64 and validate(e) == e
    safetensors.numpy.save_file(values | {"b_enc": values["b_enc"] + 1}, path)
    with pytest.raises(UserError, match=r"initialization.sha256: .*given.safetensors has .*…, allowed: .*…, as before"):
        validate(e)
    other = validate(sae.replace(tiny, {"initialization": GivenWeights(path=str(path))}))
    assert other.initialization.sha256 != e.initialization.sha256, "so the folder of the first run is another run's"


def test_a_member_of_a_run_is_the_start_of_another(tiny, tmp_path, quiet):
    how = {"wandb": "off", "console": quiet}
    first = sae.run(sae.Sweep(name="two", members=sae.grid(tiny, {"seed": (0, 1)})), out=tmp_path / "run", **how)
    given = GivenWeights(path=str(tmp_path / "run"), member=1)
    one = start(sae.replace(tiny, {"initialization": given}))
    for name, value in model.parameters(first.sae(1)).items():
        np.testing.assert_allclose(model.parameters(one)[name], value, atol=1e-6)
    still = {"initialization": given, "n_steps": 1, "optimizer.lr": 0.0}
    again = sae.run(sae.replace(tiny, still), out=tmp_path / "again", **how)
    assert again.members["eval/fvu"][0] == pytest.approx(first.members["eval/fvu"][1], rel=1e-5)
    with pytest.raises(
        UserError, match="initialization.member: .*run has no weights of member 2; is that run finished?"
    ):
        validate(sae.replace(tiny, {"initialization": dataclasses.replace(given, member=2)}))


def test_a_member_of_a_crosscoders_run_is_the_start_of_another(tiny, tmp_path, quiet):
    """Its file has the widths of its sources beside the parameters, which are no parameter of a member."""
    one = sae.replace(tiny, {"data": sae.Arrays(path=_two_files(tmp_path)), "task": sae.Crosscoder(), "n_steps": 4})
    members = sae.grid(one, {"seed": range(4)})
    first = sae.run(sae.Sweep(name="cross", members=members), out=tmp_path / "run", wandb="off", console=quiet)
    for member in range(4):
        given = GivenWeights(path=str(tmp_path / "run"), member=member)
        e = validate(sae.replace(one, {"initialization": given}))
        start = train.init(e, jnp.zeros((16, 5)), (10, 6)).sae
        for name, value in model.parameters(first.sae(member)).items():
            np.testing.assert_allclose(model.parameters(start)[name], value, atol=1e-6)


def _two_files(folder) -> tuple[str, str]:
    rows = np.random.default_rng(1).normal(size=(600, 16)).astype("float32")
    np.save(folder / "a.npy", rows[:, :10])
    np.save(folder / "b.npy", rows[:, 10:])
    return str(folder / "a.npy"), str(folder / "b.npy")


def test_weights_of_another_activation_pass_the_rehearsal_of_a_class_of_ones_own(tiny, file, tmp_path, quiet):
    path, values = file

    @sae.definition
    class Cubed(sae.Penalty):
        """The sum of cubes."""

        def cost(self, out):
            return jnp.sum(jnp.abs(out.charged) ** 3) / out.batch

    changes = {"initialization": GivenWeights(path=str(path)), "constraint": Free(), "penalty": Cubed(), "n_steps": 1}
    results = sae.run(
        sae.replace(tiny, changes | {"optimizer.lr": 0.0}), out=tmp_path / "run", wandb="off", console=quiet
    )
    np.testing.assert_array_equal(results.sae(0).W_dec[...], values["W_dec"])


def test_what_cannot_be_a_start_is_one_line(tiny, file, tmp_path):
    path, values = file
    save = lambda name, tensors: safetensors.numpy.save_file(tensors, tmp_path / name)
    save("turned.safetensors", {name: np.ascontiguousarray(values[name].T) for name in ("W_enc", "W_dec")})
    save("half.safetensors", {"W_dec": values["W_dec"]})
    (tmp_path / "text.safetensors").write_text("no weights")
    given = lambda name: {"initialization": GivenWeights(path=str(tmp_path / name))}
    wrong = {
        "initialization.path: .*none: no such file or folder": given("none"),
        "initialization.path: .*text.safetensors is no .safetensors file that can be read": given("text.safetensors"),
        "initialization.path: .*half.safetensors has W_dec, allowed: matrices W_enc and W_dec":
            given("half.safetensors"),
        "initialization.path: W_dec of .*turned.safetensors has 64 rows, allowed: d_sae = 48; transpose":
            given("turned.safetensors"),
        "initialization.path: W_dec of .*given.safetensors has 48 rows, allowed: d_sae = 50$":
            given("given.safetensors") | {"d_sae": 50},
        "initialization.decoder_norm: got 0.1 beside UnitNorm, which sets it to 1; allowed: 1":
            {"initialization": RandomRows(decoder_norm=0.1)},
        "initialization.decoder_norm: got 2 beside AtMostUnitNorm, which sets it to 1; allowed: at most 1":
            {"initialization": RandomRows(decoder_norm=2.0), "constraint": sae.AtMostUnitNorm()},
        "initialization.encoder: got an encoder of its own beside constraint.tied, allowed: decoder":
            {"initialization": RandomRows(encoder="random"), "constraint": UnitNorm(tied=True)},
    }  # fmt: skip
    for message, changes in wrong.items():
        with pytest.raises(UserError, match=message):
            validate(sae.replace(tiny, changes))
    with pytest.raises(UserError, match="W_dec of .* has rows of norm .* allowed: rows of norm 1 beside UnitNorm"):
        validate(sae.replace(tiny, given("given.safetensors")))
    e = validate(sae.replace(tiny, given("given.safetensors") | {"constraint": Free()}))
    with pytest.raises(UserError, match=r"initialization: GivenWeights gave W_enc \[48, 64\], allowed: \[48, 63\]"):
        train.init(e, X[:63])
