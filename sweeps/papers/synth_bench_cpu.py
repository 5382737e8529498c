"""Which method finds the features of a small SynthSAEBench, and does it beat frozen ones? For two CPU cores.

The small tier of P8: 1,024 features in 96 dimensions, 8 roots, otherwise the rules of the full tier; 256 latents, 10 M
examples, float32, Adam at 1e-3. 7.3 features are active in an example, and 5.6 of the 256 most frequent, so all methods
aim at an L0 of 6. Claims (a), (b) and (d) are those of `synth_bench.py`; (c), the published table, does not hold for
another world.

The sanity check of Korznikov et al. 2026 (arXiv 2602.14111): BatchTopK against the same with a decoder frozen at
random, with decoder rows held within cosine .8 of their random start, and with a frozen encoder. A feature is recovered
where the latent that a one-to-one matching gives it has an absolute cosine above .8.

(5 methods + 3 constraints) x 3 seeds = 24 members in 8 compiled programs. Each program draws the same examples anew,
22 µs each: half of the time. The controller of L1 and JumpReLU moves twenty times as fast as in the full tier, which
has twenty times as many steps.

Result: 16 of 16 claims hold; matching pursuit explains .0231 [.0218, .0243] more than BatchTopK, .02 asked. F1:
Matryoshka .81, JumpReLU .65, BatchTopK .63, L1 .48, matching pursuit .37; frozen decoder .02. (2 CPU cores: 1 h 35 min
beside much other work.) It is no `..._small.py`, as `make papers` runs those in minutes.

    sae run sweeps/papers/synth_bench_cpu.py
"""

from sae import Adam, Best, Sweep, SynthBench, replace
from sae.analysis.truth import Truth
from sweeps.papers import synth_bench as full

L0 = 6.0
SEEDS = range(3)

base = replace(
    full.base,
    {
        "name": "synth_bench_cpu",
        "data": SynthBench(d_in=96, n_features=1_024, n_roots=8),
        "d_sae": 256,
        "optimizer": Adam(lr=1e-3),
        "precision": "float32",
        "n_steps": 9_766,
    },
)

sweep = Sweep(
    name="synth_bench_cpu",
    members=[*full.members(base, (L0,), SEEDS), *full.sane(base, L0, SEEDS)],
    answer=Best(
        metric="analysis/f1",
        along="activation.k",
        group=(*full.METHOD, "constraint.frozen", "constraint.cosine"),
        also=("analysis/mcc", "analysis/explained_variance", "analysis/recovered", "analysis/l0"),
    ),
    measures=[Truth(n=200_000, levels=3)],
    claims=[*full.ranked(L0), *full.sanity(L0)],
)
