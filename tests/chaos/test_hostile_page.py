"""A report of a run in which every text is hostile, in a browser: it shows the texts, and none of them acts."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import chromium
import numpy as np
import pandas as pd
import pytest

import sae
from sae import AtMatched, Curves, FiringRates, Frontier, Heatmap, Parallel, Profile, Sweep, grid
from sae.core.files import read_checked, write_checked
from sae.report.build import build
from sae.store import storage
from sae.study.figures import Dictionaries

needs_chromium = pytest.mark.skipif(chromium.COMMAND is None, reason="no Chromium here: apt-get install chromium")
EVIL = (
    "</script></style></title></textarea><script>bad=1</script><img src=x onerror=bad=1><svg onload=bad=1>"
    "<a href='javascript:bad=1'>x</a><b>\"' onmouseover=bad=1 `{{ 7*7 }}` $x$ &lt;i&gt; \u2028\u2029 <!--<script>"
)
COLUMNS = ("__proto__", "constructor", "<img src=y onerror=bad=1>", "toString", "=1+1")


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as browser:
        yield browser


def evil(value):
    """A value of JSON with every text in it made hostile."""
    if isinstance(value, dict):
        return {name: evil(inner) for name, inner in value.items()}
    return [evil(inner) for inner in value] if isinstance(value, list) else EVIL if isinstance(value, str) else value


@pytest.fixture(scope="module")
def page(tiny, tmp_path_factory):
    """The page of a run whose folder's path and whose every text, in all its files, is hostile."""
    figures = [
        Frontier(along=("penalty.l1",), group=("d_sae", *COLUMNS[:3])),
        Heatmap(metric="eval/fvu", along=("penalty.l1",)),
        AtMatched(arms={EVIL: "penalty.l1"}, matched="eval/fvu", at=(), metrics=("eval/l0",)),
        Profile(metric="analysis/" + EVIL, x="penalty.l1", group=("d_sae", "__proto__")),
        Parallel(hyper=("penalty.l1", *COLUMNS), metrics=("eval/fvu", "analysis/" + EVIL)),
        Curves(), FiringRates(), Dictionaries(along=("penalty.l1",)),
    ]  # fmt: skip
    members = grid(tiny, {"penalty.l1": (0.05, 0.2, 0.6), "seed": (0, 1)})
    answer = AtMatched(arms={EVIL: "penalty.l1"}, at=(0.3,), metrics=("eval/l0",))
    folder = tmp_path_factory.mktemp("page") / "a<b onmouseover=bad=1>'\" %41 ${x}"
    sweep = Sweep(name="x", members=members)
    results = sae.run(sweep, out=folder, wandb="off", command=["sae", "run", "x"])
    path = folder / "definition.json"
    definition = read_checked(path)
    for name in ("name", "question", "command", "packages", "python", "device", "host", "git_commit", "started"):
        definition[name] = evil(definition[name])
    definition["packages"] = {EVIL: EVIL}
    definition["own"] = {EVIL: EVIL}
    plain = lambda one: sae.study.figures.plain(one)
    definition |= {"figures": [plain(one) for one in figures], "answer": plain(answer)}
    words = {name: [EVIL, None if name == "toString" else EVIL + "2"] for name in COLUMNS}
    for i, member in enumerate(definition["members"]):
        member |= {name: words[name][i % 2] for name in COLUMNS}
        # what names data and activation leads to code of ours, and is refused where it is unknown
        member |= {
            name: EVIL for name in member if isinstance(member[name], str) and name not in ("data", "activation")
        }
    write_checked(path, definition)
    for cohort in results.cohorts:
        table = cohort.members()
        table = table.assign(**{name: [words[name][i % 2] for i in table["member"]] for name in COLUMNS}, revival=EVIL)
        cohort.finish(table)
    numbers = pd.DataFrame({"analysis/" + EVIL: np.arange(6.0)}, index=pd.Index(range(6), name="member"))
    storage.write_analysis(folder, results.cohorts, EVIL, numbers, {"analysis/" + EVIL: EVIL})
    cell = {"text": EVIL, "measured": 1.0, "low": 0.5, "high": 2.0, "seeds": 2, "threshold": EVIL}
    claim = {"text": EVIL, "source": EVIL, "verdict": "holds", "later": True}
    claim |= {"clauses": [cell | {"verdict": "holds", "reason": EVIL}]}
    (folder / "claims.json").write_text(json.dumps([claim]))
    said = []
    return build([sae.load(folder)], say=said.append), said


def draw_all(browser):
    for i in range(browser.js("document.querySelectorAll('.plot').length")):
        browser.js(f"document.querySelectorAll('.plot')[{i}].scrollIntoView({{behavior: 'instant'}})")
        browser.wait(f"'drawn' in document.querySelectorAll('.plot')[{i}].dataset")


@needs_chromium
def test_every_text_is_shown_and_none_acts(page, browser):
    page, said = page
    assert said == [], said
    browser.open(page)
    draw_all(browser)
    assert browser.js("document.querySelectorAll('.plot').length") == 7
    browser.js("document.querySelectorAll('#table th, #table tbody tr, button, summary').forEach((n) => n.click())")
    browser.js("document.querySelectorAll('*').forEach((n) => n.dispatchEvent(new MouseEvent('mouseover')))")
    for place in ("h1", "title", "nav b", "#run dd pre", "#answer td.text", "#table td", "#chosen td"):
        assert browser.js(
            f"[...document.querySelectorAll('{place}')].some((n) => (n.textContent + n.title).includes('onerror'))"
        ), place
    assert browser.js("typeof bad") == "undefined"
    # the page's own elements and no others
    assert browser.js("document.querySelectorAll('script').length") == 3
    assert browser.js("document.querySelectorAll('img, iframe, object, embed, form, base, svg[onload]').length") == 0
    handlers = "[...document.querySelectorAll('*')].flatMap((n) => [...n.attributes]).filter((a) => /^on/.test(a.name))"
    assert browser.js(f"{handlers}.length") == 0
    links = browser.js(
        "[...document.querySelectorAll('a')].map((n) => n.getAttribute('href') ?? n.getAttribute('xlink:href'))"
    )
    assert all(link is None or re.fullmatch(r"#[\w-]+|report/[a-z0-9-]+\.(png|svg)|blob:.*", link) for link in links), (
        links
    )
    # what plotly draws of a text has no tags of the text's own
    texts = "[...document.querySelectorAll('.plot text')]"
    assert browser.js(f"{texts}.some((n) => n.textContent.includes('<img'))")
    assert (
        browser.js(f"{texts}.flatMap((n) => [...n.querySelectorAll('a, [style*=bold], [style*=italic]')]).length") == 0
    )
    assert browser.js("({}).polluted === undefined && Object.keys(Object.prototype).length === 0")
    assert browser.js("document.querySelectorAll('#table th').length") == browser.js("data.members.columns.length")
    assert browser.errors == [] and browser.requests == []


@needs_chromium
def test_a_script_that_got_into_the_page_would_not_run(page, browser):
    """The policy alone: markup that the page's own script puts in runs nothing, loads nothing and sends nothing."""
    browser.open(page[0])
    markup = '<img src="data:,x" onerror="bad=1"><a id=j href="javascript:bad=1">'
    browser.js(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(markup)})")
    browser.js("document.body.append(Object.assign(document.createElement('script'), {textContent: 'bad=1'}))")
    browser.js("document.querySelector('#j').click()")
    browser.js("document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x'}))")
    failed = browser.js("fetch('http://127.0.0.1:9/y').then(() => 'sent', (error) => error.name)")
    assert failed == "TypeError" and browser.js("typeof bad") == "undefined"
    said = json.dumps(browser.errors)
    for directive in ("script-src", "img-src", "connect-src", "default-src"):
        assert directive in said, said
    assert "Content Security Policy" in said


class Parts(HTMLParser):
    """The scripts, styles and the policy of a page."""

    def __init__(self, text):
        super().__init__()
        self.inside, self.found, self.policy = None, {"script": [], "style": []}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.policy = attrs["content"] if attrs.get("http-equiv") else self.policy
        if tag in self.found:
            self.inside = tag
            self.found[tag].append((attrs.get("type"), ""))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            kind, text = self.found[self.inside][-1]
            self.found[self.inside][-1] = (kind, text + data)


def test_the_policy_names_the_pages_own_scripts_and_styles_and_nothing_else(page):
    parts = Parts(page[0].read_text())
    digest = lambda text: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    rules = {rule.split()[0]: rule.split()[1:] for rule in parts.policy.split("; ")}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["script-src"] == [digest(text) for kind, text in parts.found["script"] if kind is None]
    assert set(rules["style-src"]) == {digest(text) for _, text in parts.found["style"]}
    assert rules["img-src"] == ["data:"] and len(rules) == 7 and rules["style-src-attr"] == ["'unsafe-inline'"]
    (block,) = [text for kind, text in parts.found["script"] if kind == "application/json"]
    assert not set("<>&\u2028\u2029") & set(block) and EVIL in json.dumps(
        json.loads(block), ensure_ascii=False
    ).replace('\\"', '"')


def test_the_pages_script_writes_no_markup():
    script = (Path(sae.__file__).parent / "report/page.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in script, way


@needs_chromium
def test_what_is_copied_into_a_spreadsheet_is_no_formula(page, browser):
    browser.open(page[0])
    rows = [["=1+1", "@x", "+1", "-1", " =2", "-inf", "a\tb\nc", 'q"1,2', -1.5, None, "–"]]
    browser.js(f"data.members.rows = {json.dumps(rows)}; order = [0]")
    browser.js("data.members.columns = data.members.rows[0].map((_, i) => ({name: i ? 'c' + i : '=cmd()', short: {}}))")
    csv = browser.js("text(',')").splitlines()
    assert csv[0].startswith("'=cmd(),c1")
    assert csv[1] == "'=1+1,'@x,'+1,'-1,' =2,-inf,a b c,\"q\"\"1,2\",-1.5,,–"
    assert browser.js("text('\\t')").splitlines()[1].split("\t") == [
        "'=1+1", "'@x", "'+1", "'-1", "' =2", "-inf", "a b c", 'q"1,2', "-1.5", "", "–",
    ]  # fmt: skip


@needs_chromium
@pytest.mark.parametrize("hash", ["#member-%", "#member-%E0%A4%A", "#member-<img>", "#member-5", "#__proto__"])
def test_any_address_opens(page, browser, hash):
    browser.open(page[0], hash=hash)
    assert browser.errors == [] and browser.js("document.querySelectorAll('#table tbody tr').length") == 6
