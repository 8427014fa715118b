"""The report of a run: whole, self-contained, and with the numbers of report.json and the ledgers."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import finished
from helpers.trainers import trainer

from dplip.accounting import TradeOff, create_accountant, tightest
from dplip.errors import ConfigurationError
from dplip.records import Ledger, read_report
from dplip.reports import write_pages
from dplip.reports.contents import contents
from dplip.reports.rounded import at_most

SECTIONS = [
    *("attacks", "guarantee", "spent", "audit", "accuracy", "certified"),
    *("training", "not-shown", "provenance", "signature"),
]
EMPTY = {"meta", "br", "line", "polyline", "hr", "link", "img"}


class Page(HTMLParser):
    """The elements of a page, which must be closed in the order that they are opened in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(folder: Path) -> Page:
    return Page((write_pages(folder)[0]).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two runs on digits in one folder."""
    folder = tmp_path_factory.mktemp("reports") / "digits"
    for epsilon in (2.0, 1.0):
        finished.digits(folder, epsilon=epsilon)
    return folder


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_the_page_has_every_section_and_needs_nothing_beside_itself(folder):
    found = page(folder)
    assert [attrs["id"] for tag, attrs in found.found if tag == "section"] == SECTIONS
    assert sum(tag == "svg" for tag, _ in found.found) == 5
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.found}
    assert not [attrs for _, attrs in found.found if {"src", "href", "srcset", "xlink:href"} & attrs.keys()]
    text = (folder / "report.html").read_text()
    assert not re.search(r"url\(|@import|https?:", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_what_is_claimed_is_the_epsilon_of_every_run_in_the_folder(folder):
    records = [Ledger.read(folder / name) for name in ("ledger-1.jsonl", "ledger.jsonl")]
    accountant = create_accountant("rdp")
    for event in (event for record in records for event in record.events):
        accountant.count(event)
    report, found = read_report(folder), page(folder)
    assert report["spent"]["epsilon"] == accountant.get_epsilon(1e-5) > max(r.epsilon(1e-5) for r in records)
    (claim,) = [attrs for _, attrs in found.found if attrs.get("id") == "claim"]
    total = at_most(accountant.get_epsilon(1e-5))
    assert claim["data-epsilon"] == total and f"ε = {total} and δ = 1e-05" in found.text
    assert f"This run alone spent ε = {at_most(report['privacy']['epsilon'])}" in found.text
    assert all(at_most(record.epsilon(1e-5)) in found.text for record in records)
    assert float(total) >= accountant.get_epsilon(1e-5)
    rate = TradeOff(tightest(accountant)).tpr(0.01)
    shown = contents(folder)["attacks"]["at_one_percent"]
    assert rate <= float(shown[:-1]) / 100 <= rate + 0.001 and f"≤ {shown}" in found.text


def test_the_numbers_are_those_of_the_report(folder):
    report, found = read_report(folder), page(folder)
    utility, certified = report["utility"], report["certified"]
    assert f"{100 * utility['accuracy']:.1f}%" in found.text and f"{100 * utility['majority']:.1f}%" in found.text
    matrix = [int(n) for row in utility["confusion"] for n in row]
    text = (folder / "report.html").read_text()
    assert [int(n) for n in re.findall(r'<td style="--share:\d+"[^>]*>(\d+)</td>', text)] == matrix
    right = sum(utility["confusion"][k][k] for k in range(10))
    assert right / sum(matrix) == pytest.approx(utility["accuracy"])
    for (radius, share), r, a in zip(
        contents(folder)["certified"]["rows"], certified["radii"], certified["accuracy"], strict=True
    ):
        assert float(radius) <= r and float(share[:-1]) <= 100 * a + 1e-9
    for digest in ("weights", "settings"):
        assert report["provenance"][digest] in found.text
    last = report["history"][-1]
    assert last["step"] == report["privacy"]["steps"] and last["epsilon"] == report["privacy"]["epsilon"]
    assert str(folder) not in text and "train_seconds" not in text


def test_the_model_card_says_the_same(folder):
    write_pages(folder)
    card, found = (folder / "model-card.md").read_text(), contents(folder)
    assert found["claim"].sentence in card
    assert all(f"| {term} | {text.replace('|', chr(92) + '|')} |" in card for term, text in found["guarantee"])
    for row in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in row.splitlines()}
        assert len(cells) == 1


def test_what_is_not_known_is_not_claimed(copied):
    (copied / "ledger-1.jsonl").unlink()
    found = page(copied)
    assert contents(copied)["claim"].status == "unknown"
    assert "which no ledger here holds" in found.text and "Nothing is claimed" in found.text
    assert "attacks" not in [attrs["id"] for tag, attrs in found.found if tag == "section"]


def test_a_damaged_ledger_is_named(copied):
    content = (copied / "ledger-1.jsonl").read_text()
    (copied / "ledger-1.jsonl").write_text(content.replace("sample_rate", "sample_rat", 1))
    assert contents(copied)["claim"].status == "unknown" and "ledger-1.jsonl, line" in page(copied).text


@pytest.mark.parametrize(
    "options, told", [({"seed": 1}, "was seeded"), ({"noise_multiplier": 0.0}, "steps were taken without noise")]
)
def test_a_run_that_is_not_private_says_so(tmp_path, options, told):
    trainer(output_dir=tmp_path, epochs=1, **options).fit()
    found = contents(tmp_path)
    assert found["claim"].status == "not private" and told in page(tmp_path).text and found["attacks"] is None
    trainer(output_dir=tmp_path, epochs=1).fit()  # a private run does not undo it
    assert contents(tmp_path)["claim"].status == "not private"


def audited(folder: Path, **about) -> None:
    record = Ledger.read(folder / "ledger.jsonl")
    row = {"promise": "a <b> promise", "tried": "2 | ways", "bound": 1.0, "found": 0.5, "survived": True, "note": ""}
    found = {"run": record.run, "events": len(record.events), "rows": [row], **about}
    (folder / "audit.json").write_text(json.dumps(found))


def test_an_audit_is_shown_if_it_is_of_this_run(copied):
    assert "None on this run" in page(copied).text
    audited(copied)
    assert "a <b> promise" in page(copied).text  # escaped: the parser gives it back as text
    audited(copied, run="another")
    assert "None on this run" in page(copied).text
    (copied / "audit.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"audit\.json"):
        write_pages(copied)


def test_a_run_without_held_out_data_and_without_a_certificate_is_reported(tmp_path):
    trainer(finished.untraced_model(), output_dir=tmp_path, epochs=1, eval_dataset=None).fit()
    text = page(tmp_path).text
    assert "There was no held-out data" in text and "No prediction of this model is certified: there was no" in text


def test_a_table_is_reported_by_its_levels(tmp_path):
    folder = finished.table(tmp_path / "run")
    text = page(folder).text
    assert "as a column rises" in text and "public range of a column" in text
    assert contents(folder)["utility"]["names"] == ["false", "true"] and contents(folder)["name"] == "shop.csv"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no report can be read"):
        write_pages(tmp_path)
    assert not list(tmp_path.iterdir())
