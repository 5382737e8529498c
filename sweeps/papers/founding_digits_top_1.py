"""On handwritten digits: what does a latent learn if it must stand for a whole digit, as only one may be active?

This is a control of S2 in founding_digits.py and decides no claim. It takes sparsity to its limit: TopK with k = 1, no
penalty, and otherwise the same setting. By construction, tau_1 is 1 for every digit that activates a latent.
5 widths x 5 seeds = 25 members in 5 compiled programs.

Result: it clusters nearly as k-means does (purity .93 to .96, k-means .93 to .99), and loses nothing by it: 256 latents
reach FVU .32 with one active, where L1 needs 6.5 active for .33. (2 CPU cores: 2 min 24 s beside other work.)

    sae run sweeps/papers/founding_digits_top_1.py
"""

from sae import Best, Dictionaries, Profile, Sweep, TopK, grid, replace
from sae.analysis.one_latent import OneLatent
from sweeps.papers import founding_digits as full

base = replace(full.base, {"name": "founding_digits_top_1", "activation": TopK(k=1)})

sweep = Sweep(
    name="founding_digits_top_1",
    members=grid(base, {"d_sae": full.WIDTHS, "seed": full.SEEDS}),
    measures=[OneLatent()],
    answer=Best(
        metric="analysis/purity",
        along="activation.k",
        also=("analysis/one_latent_share", "analysis/winners", "analysis/nearest_cosine", "eval/fvu"),
    ),
    figures=[
        *(Profile(metric=metric, x="d_sae", group=("activation.k",)) for metric in ("analysis/purity", "eval/fvu")),
        Dictionaries(),
    ],
)
