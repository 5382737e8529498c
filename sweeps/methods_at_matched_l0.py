"""Which method reconstructs best at equal L0, and which finds the true features?

16 methods x 4 targets of L0 x 3 seeds, on natural-image patches and on features in superposition (128 features in 64
dimensions, 3 active): 384 members. Methods with a penalty hold L0 by `TargetL0`; the others have k. Comparison is at
equal held-out L0, by interpolation along each method's own frontier. All methods share one learning rate, batch size and
length, which favours those that it suits; L2, KL and sigmoid or tanh latents leave nothing at 0, so no target of theirs
can be reached.

    sae run sweeps/methods_at_matched_l0.py --dry-run
    sae run sweeps/methods_at_matched_l0.py
"""

from sae import (
    L0,
    AbsTopK,
    Adam,
    Arm,
    AtMatched,
    AuxK,
    BatchTopK,
    DrawnMatryoshka,
    ElasticNet,
    Experiment,
    Gated,
    GroupMax,
    Hoyer,
    ImagePatches,
    JumpRelu,
    LogPenalty,
    Lp,
    MatchingPursuit,
    Matryoshka,
    MultiTopK,
    Relu,
    SquareRoot,
    Superposition,
    Sweep,
    TanhPenalty,
    TargetL0,
    TopK,
    grid,
    replace,
)

base = Experiment(
    name="methods_at_matched_l0",
    data=ImagePatches(size=8),
    d_sae=128,
    optimizer=Adam(lr=2e-3, warmup_steps=100, decay_steps=800),
    dead_after=50_000,
    batch_size=256,
    n_steps=4_000,
)
