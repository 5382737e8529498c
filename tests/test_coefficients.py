"""Coefficients between conventions, against the losses that the libraries' own code gave on one fixed batch."""

import pytest

import sae
from sae.cli import main as cli
from sae.interop.coefficients import CONVENTIONS, L1, Given, convert

# Golden numbers: with the coefficient .5 each library's loss on a batch of 4 rows of width 6, whose squared error is
# 2.664295 a row, whose latents sum to .449228 a row, and whose fraction of variance unexplained is 9.725793.
ERROR, SIZE, FVU = 2.664295, 0.449228, 9.725793
GIVEN = Given(d_in=6, batch=4, variance=ERROR / FVU)
LOSSES = {"dictionary_learning": 2.888909, "sparse_coding": 0.668663, "overcomplete": 1.342505}


@pytest.mark.parametrize("name", LOSSES)
def test_the_golden_losses_are_one_loss_after_conversion(name):
    """In its own convention a library's loss is ours divided by what it divides the error by."""
    ours = convert(0.5, name, "sparsity_lab", GIVEN)
    divisor = 1 if name == "dictionary_learning" else 6
    assert divisor * LOSSES[name] == pytest.approx(ERROR + ours * SIZE, abs=5e-6)


def test_sparsify_divides_by_the_variance():
    ours = convert(0.5, "sparsify", "sparsity_lab", GIVEN)
    assert (FVU + 0.5 * SIZE) * GIVEN.variance == pytest.approx(ERROR + ours * SIZE, abs=5e-6)


@pytest.mark.parametrize("to", CONVENTIONS)
@pytest.mark.parametrize("of", CONVENTIONS)
def test_every_pair_converts_there_and_back_or_says_why_not_in_one_line(of, to):
    convertible = CONVENTIONS[of].penalty == CONVENTIONS[to].penalty and "openai" not in (of, to)
    if convertible or of == to:
        assert convert(convert(0.3, of, to, GIVEN), to, of, GIVEN) == pytest.approx(0.3, rel=1e-12)
    else:
        with pytest.raises(sae.UserError, match="no conversion from") as error:
            convert(0.3, of, to, GIVEN)
        assert "\n" not in str(error.value)


def test_through_a_third_convention_is_the_same():
    names = [name for name, one in CONVENTIONS.items() if one.penalty == L1 and not one.alone]
    for of in names:
        for to in names:
            direct = convert(0.3, of, to, GIVEN)
            assert convert(convert(0.3, of, "saelens", GIVEN), "saelens", to, GIVEN) == pytest.approx(direct)


def test_scaled_inputs_scale_an_l1_coefficient_and_square_that_of_a_count():
    """x → s x, f → s f: errors grow by s², L1 by s, counts not at all."""
    assert convert(0.3, "saelens", "saelens", GIVEN, scale=10) == pytest.approx(3)
    assert convert(0.3, "saelens_step", "sparsity_lab_l0", GIVEN, scale=10) == pytest.approx(30)
    # of sparsify, whose error has no unit, L1 must shrink as the latents grow
    assert convert(0.3, "sparsify", "sparsify", GIVEN, scale=10) == pytest.approx(0.03)


def command(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main(["lambda", *argv])
    return code, *capsys.readouterr()


def test_the_command_prints_the_coefficient_and_both_forms(capsys):
    line = ["--from", "saelens", "5.0", "--to", "dictionary_learning", "--d-in", "768", "--batch", "4096"]
    code, out, _ = command(capsys, *line)
    assert code == 0 and out.startswith("l1_penalty = 5\n") and "5 in saelens: mean_b" in out
    code, out, _ = command(capsys, "--from", "saelens", "5.0", "--d-in", "768", "--batch", "4096")
    assert code == 0 and "overcomplete: penalty = 1.589457194e-06" in out and "saelens_step: l0_coefficient = –" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--from", "saelen", "5"], "from: got 'saelen'; close names: saelens"),
        (["--from", "saelens", "-1", "--to", "saex"], "got -1, allowed: a coefficient of at least 0"),
        (["--from", "saelens", "5", "--to", "saex"], "d-in: got none, allowed: a number above 0, as saex trains on"),
        (["--from", "saelens", "5", "--to", "openai"], "openai divides the error of an example by ‖x‖²"),
        (["--from", "saelens", "5", "--d-in", "-3", "--to", "openai"], "d-in: got -3, allowed: a number above 0"),
        (["--from", "saelens", "x"], "--from: got 'saelens', 'x', allowed: str, float"),
        (["--to", "openai"], "got no --from"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(capsys, argv, says):
    code, _, err = command(capsys, *argv)
    assert code == 1 and says in err and len(err.splitlines()) == 1
