"""The snippets and the command lines of the README and of docs/ run as they stand, apart from their size.

What needs a cluster, a device or an account is only planned or parsed; `NOT_HERE` and the name of the test say why.
"""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from test_harvested import folder as harvest

import sae
from sae.cli import main as cli
from sae.core import model
from sae.core.definitions import choices, is_own
from sae.experiment import Experiment
from sae.study import claims

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
SHOWN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # pages whose snippets and commands a test runs

SMALL = {"d_sae": 64, "batch_size": 64, "n_steps": 20}  # of all runs here, so that they share compiled programs
QUIET = ["--wandb", "off", "--no-report"]
NOT_HERE = {
    "--launcher slurm": "it needs Slurm, tests/test_launchers.py has one that is made up",
    "--launcher local": "it starts eight processes, as tests/test_launchers.py does",
    "--mesh": "it needs eight devices, tests/test_devices.py makes them",
    "--coordinator": "it needs two machines, tests/test_processes.py has two processes",
    "--wandb-": "it starts wandb, as tests/test_wandb.py does",
    "sae harvest": "it needs PyTorch and a model, tests/test_lm_harvest.py has a tiny one",
    "sae sync": "it needs a W&B account, tests/test_wandb_commands.py has a server",
    "sae push": "it needs an account, tests/test_hub.py has a server",
    "sae pull": "it needs a W&B account, tests/test_wandb_commands.py has a server",
    "sae dashboard runs/penalty_warmup$": "it needs a W&B account",
}


def blocks(page: Path, language: str = "") -> list[str]:
    every = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)  # of all: an end looks like a beginning
    return [text for name, text in every if name == language]


def snippets(page: str) -> list[str]:
    return blocks(ROOT / page, "python")


def commands() -> list:
    """The command lines of all pages, in blocks and in sentences, each once; what is not carried out says why."""
    found: dict[str, None] = {}
    for page in SHOWN:
        lines = [line.split("#")[0].strip() for block in blocks(page) for line in block.splitlines()]
        found |= dict.fromkeys(line.removeprefix("srun ") for line in lines if re.match(r"(srun )?sae [a-z]", line))
        found |= dict.fromkeys(re.findall(r"`(sae [\w-]+ [^`]+)`", page.read_text()))
    found = {line: None for line in found if not re.search(r" (FILE|DIR)\b", line)}
    why = {line: next((why for part, why in NOT_HERE.items() if re.search(part, line)), "") for line in found}
    return [pytest.param(line, id=f"{line}{why and f' (not carried out: {why})'}") for line, why in why.items()]


(QUESTION,), (CLAIM,), (NOTEBOOK, NORMALIZED, ANALYSIS) = map(
    snippets, ("README.md", "docs/claims.md", "docs/results.md")
)
INTEROP, AGAINST = snippets("docs/interop.md")
SAVE, SHARDS, LAYER, USE, TRANSCODER, CROSSCODER = snippets("docs/activations.md")
PENALTY, STUDY, THRESHOLD, FOLLOWS, SOURCE = snippets("docs/own-methods.md")
LANGUAGE = snippets("docs/language-models.md")
KNOWN = {QUESTION, CLAIM, NOTEBOOK, NORMALIZED, ANALYSIS, SAVE, SHARDS, LAYER, USE, TRANSCODER, CROSSCODER}
KNOWN |= {*LANGUAGE, INTEROP, AGAINST, PENALTY, STUDY, THRESHOLD, FOLLOWS, SOURCE}


def test_every_snippet_is_one_that_a_test_runs():
    assert [snippet for page in SHOWN for snippet in blocks(page, "python") if snippet not in KNOWN] == []


def run(code: str, known: dict) -> None:
    exec(compile(code, "a page", "exec"), known)


def small(sweep: sae.Sweep) -> sae.Sweep:
    return dataclasses.replace(sweep, members=[sae.replace(member, SMALL) for member in sweep.members])


def test_the_snippets_on_results_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    run(QUESTION, known)
    known["sweep"] = small(known["sweep"])
    for code in (NOTEBOOK, NORMALIZED, ANALYSIS):
        run(code, known)
    fvu = ((known["x"] - known["x_hat"]) ** 2).sum() / ((known["x"] - known["x"].mean(axis=0)) ** 2).sum()
    np.testing.assert_allclose(fvu, known["results"].members["eval/fvu"][3], rtol=1e-5)
    assert known["latents"].shape == (397, 64)
    np.testing.assert_allclose(known["bare"].encode(known["examples"]), known["latents"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(known["folded"](known["x"]), known["x_hat"], rtol=1e-4, atol=1e-4)


def test_the_snippets_on_methods_of_ones_own_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    for code in (PENALTY, STUDY, THRESHOLD, FOLLOWS, SOURCE):
        run(code, known)
    results = sae.run(small(known["sweep"]), out="study", wandb="off")
    assert results.arms == ("penalty.weight",) and len(results.members) == 6
    one, x = results.sae(0), results.data(0).held_out[:]
    bare, examples = model.normalized(one, x)
    cost = known["Log"](weight=2.0).cost(model.forward(bare, examples.T))
    np.testing.assert_allclose(cost, 2 * np.log1p(one.encode(x)).sum(axis=1).mean(), rtol=1e-5)
    choices = {"data": known["Uniform"](), "activation": known["Threshold"]()}
    results = sae.run(sae.replace(known["base"], {**choices, **SMALL}), out="own", wandb="off")
    assert np.abs(results.sae(0).own["threshold"][...] - 0.1).max() > 0.01, "thresholds are trained"
    results = sae.run(sae.replace(known["end_to_end"], SMALL), out="follows", wandb="off")
    loss = results.history["train/reconstruction"]
    assert loss.iloc[-1] < loss.iloc[0], "what follows is reconstructed"


def test_the_snippets_on_activations_run_one_after_another_and_changed_data_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    activations = rng.normal(size=(20, 50, 64)).astype(np.float16)
    activations[:, 0] *= 1_000  # attention sinks
    known: dict = {"activations": activations, "batches": np.split(activations, 4)}
    for code in (SAVE, SHARDS, LAYER):
        run(code, known)
    shards = sae.Arrays(path="layer8").load()
    np.testing.assert_array_equal(np.concatenate([shards.train[:], shards.held_out[:]]), activations.reshape(-1, 64))
    assert shards.norm_max_ratio > 500
    sweep = small(known["sweep"])
    results = sae.run(sweep, wandb="off")
    run(USE, known)
    assert known["x_hat"].shape == known["x"].shape == known["latents"].shape == (100, 64)
    assert results.members["eval/norm_max_ratio"].max() < 10, "sinks are left out"
    Path("layer8.py").write_text(LAYER)
    np.save("layer8.npy", 2 * activations)
    with pytest.raises(sae.UserError) as refused:
        results.data(0)
    (message,) = re.findall(r"^sae: .*", (ROOT / "docs/activations.md").read_text(), re.M)
    assert re.sub(r"[0-9a-f]{16}", "", message) == "sae: " + re.sub(r"[0-9a-f]{16}", "", str(refused.value))


def test_the_snippets_on_language_models_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, contexts, rows = harvest(tmp_path / "acts", hooks=("resid-post.9",))
    known: dict = {}
    member = sae.Experiment(
        name="acts", data=sae.Activations(path="acts"), d_sae=128, batch_size=16, n_steps=4, dead_after=32
    )
    sae.run(member, out="runs/acts", wandb="off")
    for code in LANGUAGE:
        run(code, known)
    assert len(known["found"].table) == 128 and known["found"].part.name == "train"
    np.testing.assert_array_equal(known["part"].rows("resid-post.9")[:], rows["held-out"]["resid-post.9"])
    np.testing.assert_array_equal(known["part"].ids, contexts["held-out"][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader of the pages stands: their files, the checkout's, and the runs that the commands speak of."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("experiments", "sweeps"):
        (folder / name).symlink_to(ROOT / name)
    own = "\n".join((PENALTY, STUDY, THRESHOLD))
    for name, code in (("my_question", QUESTION), ("half", CLAIM), ("own", own), ("layer8", LAYER)):
        (folder / f"{name}.py").write_text(code)
    activations = np.random.default_rng(0).normal(size=(2_500, 64)).astype(np.float16)
    np.save(folder / "layer8.npy", activations)
    (folder / "layer8").mkdir()
    np.save(folder / "layer8/0.npy", activations)
    for name in ("mlp_in", "mlp_out", "base", "chat"):
        np.save(folder / f"{name}.npy", activations[:, : 48 if name == "mlp_out" else 64])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in ("sae run my_question.py", "sae run half.py", "sae run own.py"):
            assert cli.main([*shlex.split(line)[1:], *smaller(line), *QUIET]) == 0
        assert cli.main(["export", "runs/penalty_warmup", "--member", "0", "theirs"]) == 0
        for name in ("a", "b"):
            shutil.copytree("runs/penalty_warmup", f"runs/{name}")
    return folder


def test_the_snippets_on_transcoders_and_crosscoders_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    known = {"sae": sae, "x": np.load("mlp_in.npy")}
    for name, arrays in (("transcoder", "mlp_in.npy mlp_out.npy"), ("crosscoder", "base.npy chat.npy")):
        line = f"sae run {folder}/experiments/published/{name}.py --data.path {arrays}"
        assert cli.main([*shlex.split(line)[1:], *smaller(line), *QUIET]) == 0
    run(TRANSCODER, known)
    assert known["y_hat"].shape == (2_500, 48) and known["latents"].shape == (2_500, 64)
    skipped = known["x"] @ model.fold(known["one"]).W_skip[...].T
    shift = (known["y_hat"] - known["part"]) - skipped
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-3)
    run(CROSSCODER, known)
    np.testing.assert_allclose(known["shares"].sum(axis=1), 1, rtol=1e-5)


def test_the_snippet_on_other_libraries_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    known: dict = {}
    run(INTEROP, known)
    x = known["sae"].load("runs/penalty_warmup").data(3).held_out[:]
    np.testing.assert_allclose(known["again"](x), known["one"](x), atol=1e-4)
    run(AGAINST, known)
    results = sae.run(small(known["sweep"]), wandb="off")
    assert list(results.others.index) == ["theirs"] and len(results.claims) == 1


def smaller(line: str) -> list[str]:
    """Flags that make a command's work small."""
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in SMALL.items()}
    return [word for flag, value in flags.items() if f"{flag} " not in line for word in (flag, value)]


@pytest.mark.parametrize("line", commands())
def test_every_command_line_works(line, request, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    here = "(not carried out" not in request.node.name
    argv = shlex.split(line.replace("--n-steps 4000", "--n-steps 40"))[1:]
    if argv[0] == "run" and not here:
        argv.append("--dry-run")
    elif argv[0] == "run" and not {"--dry-run", "--help"} & {*argv}:
        # what names no folder and changes nothing finds the finished run
        elsewhere = [] if len(argv) == 2 or "--out" in argv or "--check" in argv else ["--out", str(tmp_path / "run")]
        argv += [*smaller(line), *QUIET, *elsewhere]
    elif argv[0] == "bench":
        argv += smaller(line)
    elif argv[0] == "harvest":
        for name in ("harvest", "rehearse"):
            monkeypatch.setattr(f"sae.cli.harvest.{name}", lambda *args, **settings: None)
    elif not here:
        where = "sae.interop.hub.push" if argv[0] == "push" else f"sae.wandb.{argv[0]}.{argv[0]}"
        monkeypatch.setattr(where, lambda *args, **options: "a commit")
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code in ((0, 2) if "--check" in argv else (0,)), err
    assert "sae: " not in err


def test_the_targets_of_make_exist():
    text = "".join(page.read_text() for page in SHOWN)
    targets = set(re.findall(r"^make (\w+)", text, re.M)) | set(re.findall(r"`make (\w+)`", text))
    assert targets >= {"demo", "test"} and all(f"\n{name}:" in (ROOT / "Makefile").read_text() for name in targets)


def test_pages_name_what_there_is():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert [name for name in cli.COMMANDS if f"`{name}`" not in readme and f"`sae {name}`" not in readme] == []
    page = (ROOT / "docs/choices.md").read_text()
    ours = [cls for hint in get_type_hints(Experiment).values() for cls in choices(hint) if not is_own(cls)]
    assert ours and [cls.__name__ for cls in ours if f"`{cls.__name__}" not in page] == []
    index = (ROOT / "docs/README.md").read_text()
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/notebooks").glob("*.ipynb")]
    assert [page.name for page in pages if page.name != "README.md" and f"[{page.name}]" not in index] == []


def test_the_claim_can_be_checked():
    known: dict = {}
    run(CLAIM, known)
    (claim,) = known["sweep"].claims
    claim.check(["d_sae", "penalty.l1", "penalty.l2"])
    assert claims.written(claim)["threshold"] == "≤ 0.5"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
