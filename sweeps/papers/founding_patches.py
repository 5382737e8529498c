"""On natural-image patches: does L1 silence latents where L2 shrinks them, filter noise, and not copy pixels?

The founding question of this project, claims S4 (a-c), S1 and S3. 5 widths x (13 L1 + 13 L2 + no penalty) x 5 seeds =
675 members in 5 compiled programs.

Whitened 8x8 patches; two whole photographs are held out. Thresholds were fixed after a pilot with other seeds and with
patches cut elsewhere from the same photographs. Where a claim is about the best coefficient, the coefficient is chosen
on half of the held-out patches and the claim is decided on the other half. Each corruption is filtered with the
coefficient that is best for it; separate claims use the one that is best for noise of sigma .3.

Result: all 26 claims hold. At FVU .2, L1 leaves 6, 8, 13 and 16 of 64, 128, 256 and 512 latents active; L2 leaves 32,
65, 129 and 215. L1 removes 3.0 dB of noise of sigma .3, PCA 1.5. Ten of the claims say little, as the mean patch meets
them too: docs/papers/founding.md. (2 CPU cores: 14 min.)

    sae run sweeps/papers/founding_patches.py
"""

from collections.abc import Iterable

from sae import (
    Adam,
    AtLeast,
    AtMatched,
    AtMost,
    Claim,
    Dictionaries,
    ElasticNet,
    Experiment,
    Frontier,
    Heatmap,
    ImagePatches,
    Profile,
    Relu,
    Sweep,
    UnitNorm,
    grid,
)
from sae.analysis.copying import Copying
from sae.analysis.denoising import Denoising
from sae.analysis.small_latents import SmallLatents
from sae.study.figures import Figure
from sae.study.quantities import Arm, AtBest, AtEnd, AtSome, Difference, Matched, Monotone, Ratio, Span

D_IN = 64
WIDTHS = (32, 64, 128, 256, 512)
L1 = (0.03, 0.05, 0.08, 0.13, 0.22, 0.37, 0.6, 1.0, 1.6, 2.7, 4.5, 7.5, 12.0)
L2 = (0.02, 0.035, 0.06, 0.11, 0.2, 0.35, 0.6, 1.1, 2.0, 3.5, 6.0, 11.0, 20.0)
SEEDS = range(1, 6)

base = Experiment(
    name="founding_patches",
    data=ImagePatches(size=8, split_seed=1),
    d_sae=64,
    activation=Relu(),
    penalty=ElasticNet(),
    constraint=UnitNorm(),
    optimizer=Adam(lr=2e-3, warmup_steps=100, decay_steps=600),
    dead_after=100_000,
    batch_size=256,
    n_steps=3_000,
)


def members(base: Experiment, widths: tuple, l1: tuple, l2: tuple, seeds: Iterable[int]) -> list[Experiment]:
    """Members of every width and seed: without a penalty, with each L1 and with each L2."""
    return [
        *grid(base, {"d_sae": widths, "seed": seeds}),
        *grid(base, {"d_sae": widths, "penalty.l1": l1, "seed": seeds}),
        *grid(base, {"d_sae": widths, "penalty.l2": l2, "seed": seeds}),
    ]


def arms(widths: tuple[int, ...], l1: tuple[float, ...] | None = None) -> tuple[Arm, Arm]:
    """The arms (L1, L2) at some widths; `l1` restricts the coefficients of L1."""
    where = {"d_sae": widths}
    return (
        Arm(along="penalty.l1", others=("penalty.l2",), where=where | ({"penalty.l1": l1} if l1 else {})),
        Arm(along="penalty.l2", others=("penalty.l1",), where=where),
    )


def silences(widths: tuple[int, ...], l1: tuple[float, ...]) -> list[Claim]:
    """The claims of S4 a, b and c at some widths, each at least d_in = 64."""
    one, two = arms(widths)
    penalised, _ = arms(widths, l1)
    l0 = lambda widths, at: Ratio(*(Matched(arm=arm, metric="eval/l0", at=at) for arm in arms(widths)))
    source = "founding question, S4"
    wider = tuple(width for width in widths if width > D_IN)
    return [
        Claim("S4a At equal FVU, L1 leaves at most half as many latents active as L2 (width d: at .2 and .4)",
              AtMost(l0((D_IN,), (0.2, 0.4)), 0.5), source),
        Claim("S4a Width d, at FVU .1: at most .6 times as many", AtMost(l0((D_IN,), (0.1,)), 0.6), source),
        Claim("S4a Wider than d: at most half as many", AtMost(l0(wider, (0.1, 0.2, 0.4)), 0.5), source),
        Claim("S4b L0 falls with L1: Spearman's rank correlation",
              AtMost(Monotone(arm=penalised, metric="eval/l0"), -0.95), source),
        Claim("S4b ... over a range of coefficients of tenfold or more",
              AtLeast(Span(arm=penalised, metric="eval/l0"), 10), source),
        Claim("S4b L2 stays dense: at FVU .2, latents above 1 % of the largest are at least .4 d",
              AtLeast(Matched(arm=two, metric="eval/l0_relative", at=(0.2,)), 0.4 * D_IN), source),
        Claim("S4c At FVU .2, L2 has at least twice as many small latents per example (below 10 % of the largest)",
              AtLeast(Ratio(*(Matched(arm=arm, metric="analysis/small_latents", at=(0.2,)) for arm in (two, one))), 2),
              source),
    ]  # fmt: skip


def filters(width: int) -> list[Claim]:
    """The claims of S1 at one width: what the coefficient gains that is best on validation images.

    "The best coefficient" of the suite may mean one for all corruptions or one for each. Both readings are decided.
    """
    one, _ = arms((width,))
    best = lambda name, of="": AtBest(arm=one, metric=f"analysis/{name}{of}", by=f"analysis/{name}_validation")
    unpenalised = AtEnd(arm=one, metric="analysis/gain_gaussian_0.3", smallest=True)
    auroc = lambda name: AtBest(arm=one, metric=f"analysis/auroc_{name}", by=f"analysis/gain_{name}_validation")
    same = lambda name: AtBest(arm=one, metric=f"analysis/{name}", by="analysis/gain_gaussian_0.3_validation")
    gaussian, source = "gain_gaussian_0.3", "founding question, S1"
    return [
        Claim("S1 Noise of sigma .3 is filtered: PSNR gained, dB", AtLeast(best(gaussian), 2), source),
        Claim("S1 ... more than without a penalty, dB", AtLeast(Difference(best(gaussian), unpenalised), 1), source),
        Claim("S1 ... more than by PCA of the best rank, dB",
              AtLeast(Difference(best(gaussian), best(gaussian, "_pca")), 1), source),
        Claim("S1 An aberrant pixel is filtered, dB", AtLeast(best("gain_pixel"), 2), source),
        Claim("S1 A 2x2 blob is filtered, dB", AtLeast(best("gain_blob"), 0), source),
        Claim("S1 The residual finds the aberrant pixel: AUROC", AtLeast(auroc("pixel"), 0.9), source),
        Claim("S1 The residual finds the blob: AUROC", AtLeast(auroc("blob"), 0.9), source),
        Claim("S1 The residual finds salt and pepper: AUROC", AtLeast(auroc("salt_and_pepper"), 0.9), source),
        Claim("S1 By the coefficient best for noise of .3, an aberrant pixel: dB",
              AtLeast(same("gain_pixel"), 2), source),
        Claim("S1 ... a 2x2 blob, dB", AtLeast(same("gain_blob"), 0), source),
        Claim("S1 ... AUROC of the aberrant pixel", AtLeast(same("auroc_pixel"), 0.9), source),
        Claim("S1 ... AUROC of the blob", AtLeast(same("auroc_blob"), 0.9), source),
        Claim("S1 ... AUROC of salt and pepper", AtLeast(same("auroc_salt_and_pepper"), 0.9), source),
    ]  # fmt: skip


def copies_not(width: int, l1: tuple[float, ...]) -> list[Claim]:
    """The claims of S3, at one width."""
    one, _ = arms((width,))
    penalised, _ = arms((width,), l1)
    least = {"analysis/fvu_permuted": 0.45}
    most = {"eval/fvu": 0.2, "analysis/degrees_of_freedom": 0.2, "analysis/copy_index": 0.3}
    some = lambda metric: AtSome(arm=penalised, metric=metric, least=least, most=most)
    unpenalised = lambda metric: AtEnd(arm=one, metric=metric, smallest=True)
    source = "founding question, S3"
    return [
        Claim("S3 Without a penalty, permuted pixels are reproduced: FVU",
              AtMost(unpenalised("analysis/fvu_permuted"), 0.15), source),
        Claim("S3 ... and nearly every direction passes: degrees of freedom / d",
              AtLeast(unpenalised("analysis/degrees_of_freedom"), 0.9), source),
        Claim("S3 Some sparse member reproduces patches: FVU", AtMost(some("eval/fvu"), 0.2), source),
        Claim("S3 ... and not permuted pixels: FVU", AtLeast(some("analysis/fvu_permuted"), 0.45), source),
        Claim("S3 ... passes few directions: degrees of freedom / d",
              AtMost(some("analysis/degrees_of_freedom"), 0.2), source),
        Claim("S3 ... and its latents are not pixels: copy index", AtMost(some("analysis/copy_index"), 0.3), source),
    ]  # fmt: skip


def figures(along: tuple[str, ...] = ("penalty.l1", "penalty.l2")) -> list[Figure]:
    """The figures that every part of the founding question shows."""
    return [
        Frontier(along=along),
        Heatmap(metric="eval/fvu", along=along),
        Heatmap(metric="eval/l0", along=along),
        Heatmap(metric="eval/dead_fraction", along=along),
        Frontier(along=along, y="analysis/small_latents"),
    ]


MEASURES = [SmallLatents(), Copying(), Denoising()]
SHOWN = [
    *figures(),
    Frontier(along=("penalty.l1", "penalty.l2"), y="analysis/fvu_permuted"),
    Frontier(along=("penalty.l1", "penalty.l2"), y="analysis/degrees_of_freedom"),
    Profile(metric="analysis/gain_gaussian_0.3", x="penalty.l1", others=("penalty.l2",)),
    Dictionaries(along=("penalty.l1", "penalty.l2")),
]

sweep = Sweep(
    name="founding_patches",
    members=members(base, WIDTHS, L1, L2, SEEDS),
    answer=AtMatched(arms={"L1": "penalty.l1", "L2": "penalty.l2"}, at=(0.1, 0.2, 0.4)),
    measures=MEASURES,
    figures=SHOWN,
    claims=[*silences(WIDTHS[1:], L1), *filters(2 * D_IN), *copies_not(2 * D_IN, L1)],
)
