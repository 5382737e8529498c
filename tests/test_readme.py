"""The snippets of the README and of docs/ run as they stand, apart from their size; the links of all pages work."""

import re
from pathlib import Path

import numpy as np
import pytest

import sae
from sae.core import model
from sae.study import claims

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


(QUESTION,), (CLAIM,), (NOTEBOOK, ANALYSIS) = map(snippets, ("README.md", "docs/claims.md", "docs/results.md"))
OWN = snippets("docs/choices.md")


def test_the_snippets_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = QUESTION.replace("d_sae=256", "d_sae=16").replace("n_steps=2_000", "n_steps=20")
    assert small.count("=16") == small.count("=20") == 1
    known: dict = {}
    for code in (small, NOTEBOOK, ANALYSIS, *OWN):
        exec(compile(code, "a page", "exec"), known)
    fvu = ((known["x"] - known["x_hat"]) ** 2).sum() / ((known["x"] - known["x"].mean(axis=0)) ** 2).sum()
    np.testing.assert_allclose(fvu, known["results"].members["eval/fvu"][3], rtol=1e-5)
    assert known["latents"].shape == (397, 16)
    penalty = known["Log"](weight=2.0)
    bare, examples = model.normalized(known["one"], known["x"])
    cost = penalty.cost(model.forward(bare, examples.T))
    np.testing.assert_allclose(cost, 2 * np.log1p(known["latents"]).sum(axis=1).mean(), rtol=1e-5)
    choices = {"data": known["Uniform"](), "activation": known["Threshold"](), "penalty": penalty}
    results = sae.run(sae.replace(known["base"], {**choices, "d_sae": 8}), out="own", wandb="off")
    assert np.abs(results.sae(0).own["threshold"][...] - 0.1).max() > 0.01, "thresholds are trained"


def test_the_claim_can_be_checked():
    known: dict = {}
    exec(CLAIM.replace("Sweep(..., ", "dict("), known)
    (claim,) = known["sweep"]["claims"]
    claim.check(["d_sae", "penalty.l1", "penalty.l2"])
    assert claims.written(claim)["threshold"] == "≤ 0.5"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
