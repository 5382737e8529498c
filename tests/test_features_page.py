"""The page of features in a real browser, on text that would take it over if it could, and in a notebook."""

import json
import re
import shutil

import chromium
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import sae
from sae import Activations, Adam, ElasticNet, Experiment, Sweep, TopK, UserError
from sae.cli import main as cli
from sae.data import harvested
from sae.report import FEATURES, features_page, made
from sae.report.build import build
from sae.report.features import gather
from sae.report.runs import gather as gather_runs

HOSTILE = [
    "</script><script>bad=1</script>",
    '<img src=x onerror="bad=1">',
    "\u202eevil\u202c",
    "a\0b\x1b[31mc\x07",
    "<!--",
    "]]>",
    "{{ 7 * 7 }}",
    "\u2028",
    "&lt;b&gt;",
    "javascript:bad=1",
]
NAME = '../<img src=x onerror="bad=1">\u202e.py'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A harvest whose rows are the directions of tokens, so that a latent is a token or some of them."""
    rng = np.random.default_rng(0)
    pieces = [b"<end>", b" the", b"\n", b"\n\n", b"  ", b"\t", "é".encode()[:1], "é".encode()[1:], "漢".encode()]
    turn = len(pieces)  # the two halves of a mark that turns the direction of text
    pieces += ["\u202e".encode()[:2], "\u202e".encode()[2:]]
    pieces += [text.encode() for text in HOSTILE] + [f" word{i}".encode() for i in range(40)]
    directions = rng.standard_normal((len(pieces), 12)).astype(np.float32)
    contexts, rows, number = {}, {}, 0
    for split, n in (("train", 80), ("held-out", 30)):
        ids = rng.integers(1, len(pieces), (n, 32)).astype(np.int32)
        ids[:, 10:12] = (6, 7)  # the two halves of a letter, side by side
        ids[:, 13:15] = (turn, turn + 1)
        documents = np.arange(number, number + 2 * n).reshape(n, 2).repeat(16, axis=1)
        ids[:, 16], documents[:, 16] = 0, -1
        number += 2 * n
        contexts[split] = (ids, documents)
        context, position = harvested.kept(documents, 1)
        rows[split] = {"resid-post.1": (directions[ids[context, position]] * 3).astype(np.float16)}
    table = pd.DataFrame({"name": [NAME] * number, "corpus": "x", "kind": "txt", "split": "train", "n_tokens": 16})
    made = tmp_path_factory.mktemp("harvest")
    more = {"unembedding": directions, "special": np.arange(len(pieces)) == 0, "shard": 40}
    return harvested.write(made, contexts=contexts, rows=rows, documents=table, pieces=pieces, **more)


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """Two members of 64 latents, and their report."""
    base = Experiment(
        name="on text",
        data=Activations(path=str(folder.path)),
        d_sae=64,
        activation=TopK(k=4),
        penalty=ElasticNet(l1=0.0),
        optimizer=Adam(lr=1e-2),
        batch_size=128,
        n_steps=80,
    )
    members = [base, sae.replace(base, {"activation.k": 2})]
    sweep = Sweep(name="on text", members=members)
    results = sae.run(sweep, out=str(tmp_path_factory.mktemp("runs") / "run"), wandb="off")
    build([results])
    return results


@pytest.fixture(scope="module")
def looked(results):
    """What the pages show of both members."""
    return gather(results, [0, 1])


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as browser:
        yield browser


needs_chromium = pytest.mark.skipif(chromium.COMMAND is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def small_files(results):
    """The pages again, with 20 latents of each member in the first file and 16 in each of the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_page, "LATENTS", 20)
        patch.setattr(features_page, "CHUNK", 16)
        out = results.folder / "small.html"
        runs = gather_runs([results])
        patch.setitem(results.definition, "name", "<b>small</b></title>")
        features_page.write(results, runs, out, "report.html", lambda line: None)
    return out


def texts(browser, query):
    return browser.js(f"[...document.querySelectorAll({json.dumps(query)})].map((node) => node.textContent)")


def press(browser, key, query=None):
    target = f"document.querySelector({json.dumps(query)})" if query else "document.activeElement"
    event = f"new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true, cancelable: true}})"
    browser.js(f"{target}.dispatchEvent({event})")


def latent(browser):
    return int(browser.js("document.querySelector('#card h2').textContent").split()[-1])


def test_a_run_on_activations_has_a_page_of_features_and_its_report_leads_there(results):
    assert (results.folder / FEATURES).is_file()
    assert f'href="{FEATURES}"' in (results.folder / "report.html").read_text()
    assert made.current(results)
    again = results.folder.parent / FEATURES
    features_page.write(results, gather_runs([results]), again, "report.html", lambda line: None)
    assert again.read_bytes() == (results.folder / FEATURES).read_bytes()


@needs_chromium
def test_nothing_in_a_text_runs_or_becomes_markup(results, small_files, browser):
    page = results.folder / FEATURES
    written = page.read_text()
    assert "onerror" in written and "<img" not in written and "\0" not in written and "\u202e" not in written
    for path in (page, small_files, *sorted(small_files.with_suffix("").iterdir())[:2]):
        browser.open(path)
        seen, names = [], set()
        for _ in range(browser.js("shown.length")):
            seen += texts(browser, ".token") + texts(browser, ".columns td") + texts(browser, ".row span")
            names |= set(texts(browser, ".contexts small"))
            press(browser, "j", "#list")
        assert browser.js("typeof bad") == "undefined"
        assert browser.js("document.querySelectorAll('img, iframe, b b, article script').length") == 0
        assert browser.js("document.querySelectorAll('script').length") == 2
        title = "on text" if path == page else "<b>small</b></title>"
        assert browser.js("document.title") == f"Features of {title}"
        joined = "\n".join(seen)
        for text in ("</script><script>bad=1</script>", "<img␣src=x␣onerror", "<!--", "{{", "&lt;b&gt;", "javascript:"):
            assert text in joined or text.replace("␣", " ") in joined
        assert "a␀b␛[31mc␇" in joined and "�evil�" in joined  # controls and turns of direction are seen, not obeyed
        assert not re.search("[\0-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u2028]", joined)
        assert names and all(name.endswith(NAME.replace("\u202e", "�")) for name in names)
        assert browser.errors == [] and browser.requests == []


@needs_chromium
def test_the_page_forbids_what_it_does_not_bring(results, browser):
    """Even a script or a style that got into the page would not run."""
    browser.open(results.folder / FEATURES)
    policy = browser.js("document.querySelector('meta[http-equiv]').content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    browser.js("document.body.append(Object.assign(document.createElement('script'), {textContent: 'bad = 1'}))")
    browser.js("document.body.setAttribute('onclick', 'bad = 1'); document.body.click()")
    assert browser.js("typeof bad") == "undefined" and browser.errors


@needs_chromium
def test_the_card_shows_the_numbers_of_its_latent(results, looked, browser):
    found = looked[1]
    browser.open(results.folder / FEATURES, hash="#member-1/latent-5")
    rates = found.latents.rates
    most = int(np.argmax(rates))
    for wanted in (most, int(np.argsort(-rates)[7])):
        browser.js(f"go(1, {wanted})")
        card = found[wanted]
        assert latent(browser) == wanted
        facts = browser.js("document.querySelector('#card .facts').textContent")
        assert f"({found.latents.fired[wanted]:,})" in facts and facts.startswith("member 1, activation.k 2")
        contexts = browser.js("document.querySelectorAll('.context').length")
        assert contexts == len(card.contexts)
        for i, context in enumerate(card.contexts):
            line = f"document.querySelectorAll('.context')[{i}]"
            tokens = browser.js(f"[...{line}.children].map((node) => [node.title, node.dataset.share])")
            assert len(tokens) == len(context["tokens"])
            for (title, share), text, value in zip(tokens, context["tokens"], context["values"], strict=True):
                shown, _, said = title.rpartition("  ")
                assert shown == text or "<" in text or text in ("é",)
                if value is None:
                    assert said == "not looked at"
                else:
                    assert float(said) == pytest.approx(value, rel=6e-3, abs=1e-3)
                    assert (share is None) == (value == 0)
                    assert share is None or float(share) == pytest.approx(
                        value / found.latents.largest[wanted], abs=2e-3
                    )
        columns = texts(browser, ".columns td")
        assert found.texts.shown(int(found.promoted.ids[np.searchsorted(found.written, wanted), 0])) in columns
        near = found.nearest[1].latents[wanted]
        assert [str(n) for n in near] == texts(browser, ".columns a")[: len(near)]


@needs_chromium
def test_letters_in_several_tokens_are_whole_and_spaces_and_line_ends_are_seen(results, browser):
    browser.open(results.folder / FEATURES)
    seen, marks, spaces = set(), set(), 0
    for _ in range(20):
        seen |= set(texts(browser, ".token"))
        marks |= set(texts(browser, ".token .mark"))
        spaces += browser.js("document.querySelectorAll('.token .space').length")
        press(browser, "j", "#list")
    assert "é" in seen and "…" in seen and "漢" in seen and marks == {"↵", "→"} and spaces > 50


@needs_chromium
def test_everything_is_reached_by_keys(results, looked, browser):
    browser.open(results.folder / FEATURES)
    found = looked[0]
    order = np.argsort(-found.latents.rates, kind="stable").tolist()
    assert latent(browser) == order[0]
    press(browser, "j", "body")
    press(browser, "j", "body")
    assert latent(browser) == order[2]
    press(browser, "k", "body")
    assert latent(browser) == order[1]
    press(browser, "End", "#list")
    assert latent(browser) == order[-1]
    assert browser.js("document.querySelector('#list').getAttribute('aria-activedescendant')") == f"latent-{order[-1]}"
    assert browser.js(f"document.querySelector('#latent-{order[-1]}').getAttribute('aria-selected')") == "true"
    press(browser, "Home", "#list")
    press(browser, "ArrowDown", "#list")
    assert latent(browser) == order[1]
    press(browser, "r", "body")
    assert latent(browser) == order[-1] or found.latents.rates[latent(browser)] == found.latents.rates.min()
    press(browser, "r", "body")
    press(browser, "/", "body")
    assert browser.js("document.activeElement.id") == "search"
    browser.js("{ search.value = 'word7'; search.oninput() }")
    press(browser, "Enter")
    assert browser.js("document.activeElement.id") == "list"
    hits = browser.js("shown.map((i) => member.latents[i])")
    peaks = found.table["on"].str.contains("word7").to_numpy().nonzero()[0].tolist()
    assert set(peaks) <= set(hits) and 0 < len(hits) < 64
    browser.js("{ search.value = '13'; search.oninput() }")
    assert latent(browser) == 13
    press(browser, "]", "body")
    assert "member 1" in browser.js("document.querySelector('#card .facts').textContent")
    browser.js("{ search.value = ''; search.oninput() }")
    press(browser, "c", "body")
    press(browser, "ArrowRight")
    value = browser.js("document.querySelector('#value').textContent")
    assert value and browser.js("document.querySelector('.token.at').classList.contains('peak')")
    press(browser, "ArrowLeft")
    assert browser.js("document.querySelector('#value').textContent") == browser.js(
        "document.querySelector('.token.at').title"
    )
    press(browser, "ArrowDown")
    assert browser.js("[...document.querySelectorAll('.context')].indexOf(document.activeElement)") == 1
    assert browser.js("document.querySelector('#keys').offsetHeight") == 0
    press(browser, "?")
    assert browser.js("document.querySelector('#keys').offsetHeight") > 100
    assert browser.errors == [] and browser.requests == []


@needs_chromium
def test_latents_are_ordered_by_what_is_chosen(results, looked, browser):
    browser.open(results.folder / FEATURES)
    found = looked[0]
    effect = np.full(64, -np.inf)
    effect[found.written] = found.promoted.effects[:, 0]
    keys = {
        "firing rate": found.latents.rates,
        "largest value": found.latents.largest,
        "logit effect": effect,
        "similarity, this member": found.nearest[0].cosines[:, 0],
        "number": -np.arange(64),
    }
    for name, key in keys.items():
        change = "order.onchange({target: order})"
        browser.js(f"{{ const order = document.querySelector('#order'); order.value = {json.dumps(name)}; {change} }}")
        got = browser.js("shown.map((i) => member.latents[i])")
        np.testing.assert_allclose(key[got], -np.sort(-key), rtol=1e-5, err_msg=name)
    assert sorted(got) == list(range(64))


@needs_chromium
def test_the_rest_is_in_files_beside_the_page(looked, small_files, browser):
    found = looked[0]
    browser.open(small_files)
    alive = np.flatnonzero(found.latents.fired)
    here = browser.js("[...member.card.latents]")
    assert len(here) == 20 and set(here) <= set(alive)
    by_rate = np.argsort(-found.latents.rates, kind="stable")
    assert by_rate[0] in here and by_rate[len(alive) - 1] in here  # the most and the least active are among them
    rest = sorted(set(alive) - set(here))
    browser.js(f"go(0, {rest[0]})")
    assert browser.js("document.querySelectorAll('.context').length") == 0
    press(browser, "o", "body")
    browser.wait("document.title && document.readyState === 'complete' && !location.href.includes('small.html')")
    assert latent(browser) == rest[0]
    assert browser.js("document.querySelectorAll('.context').length") == len(found[rest[0]].contexts)
    first, last = rest[0] // 16 * 16, rest[0] // 16 * 16 + 15
    assert browser.js("[...member.latents]") == [n for n in alive if first <= n <= last]
    assert browser.js("document.querySelector('#home').getAttribute('href')") == "../small.html"
    browser.js("document.querySelector('#home').click()")
    browser.wait("location.href.includes('small.html') && document.readyState === 'complete'")
    assert browser.errors == [] and browser.requests == []
    links = browser.js("Object.values(data.members[0].files)")
    assert all((small_files.parent / link).is_file() for link in links) and len(links) == 4


@needs_chromium
@pytest.mark.parametrize("width, dark", [(1280, False), (375, True), (375, False)])
def test_the_page_fits_a_phone_and_is_readable_in_the_dark(results, browser, tmp_path, width, dark):
    browser.open(results.folder / FEATURES, width=width, height=800, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") == width
    press(browser, "?", "body")
    for _ in range(12):
        press(browser, "j", "#list")
        assert browser.js("document.documentElement.scrollWidth") == width
    paint = """(() => {
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const over = (colour, paper) => {
        for (const one of [paper, colour]) { canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data];
      };
      const linear = (v) => v <= .04045 * 255 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
      const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
      const paper = getComputedStyle(document.body).backgroundColor;
      return [...document.querySelectorAll(".token")].filter((node) => node.dataset.share).map((node) => {
        const style = getComputedStyle(node);
        const [back, ink] = [style.backgroundColor, style.color].map((colour) => light(over(colour, paper)));
        return [Number(node.dataset.share), (Math.max(back, ink) + .05) / (Math.min(back, ink) + .05), back];
      });
    })()"""
    shares, contrasts, backs = np.array(browser.js(paint)).T
    assert contrasts.min() >= 4.5 and shares.max() > 0.95
    strongest, weakest = backs[shares.argmax()], backs[shares.argmin()]
    assert (strongest > weakest) == dark  # the shade tells values apart
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == width and (np.median(np.asarray(image.convert("L"))) < 60) == dark
    assert browser.errors == [] and browser.requests == []


def test_a_notebook_shows_a_table_and_a_latent(results):
    found = results.features(0, split="train", examples=500)
    assert list(found.table.columns[:4]) == ["firing_rate", "largest", "on", "promotes"] and len(found.table) == 64
    assert found.latents.n < 700 and found.part.name == "train"
    markup = found[int(found.latents.fired.argmax())]._repr_html_()
    assert (
        "latent" in markup
        and not re.search("<(?!/?(p|b|span|small)[ >])", markup)
        and "onerror" not in re.sub("&lt;img.*?&gt;", "", markup)
    )
    assert "<img" not in found._repr_html_() and "bad=1</script>" not in found._repr_html_()
    with pytest.raises(UserError, match="got latent 64, allowed: 0 to 63"):
        found[64]


def test_other_data_have_no_features_and_one_line_says_so(tiny, tmp_path):
    results = sae.run(tiny, out=str(tmp_path / "digits"), wandb="off")
    page = build([results])
    assert not (results.folder / FEATURES).exists() and FEATURES not in page.read_text()
    with pytest.raises(UserError, match="got member 0 on Digits, allowed: Activations"):
        results.features(0)


def test_a_page_that_cannot_be_made_costs_a_line_and_nothing_else(results, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "run"
    shutil.copytree(results.folder, copy, ignore=shutil.ignore_patterns("*.html", "report", "features", "small"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features_page, "pages", full)
    assert cli.main(["report", str(copy)]) == 0
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "features" in line]
    assert len(lines) == 1 and "no page of features: [Errno 28] No space left on device" in lines[0]
    assert (copy / "report.html").is_file() and not (copy / FEATURES).exists()
