"""The page in a real browser: what a person sees, points at and types."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("selenium", reason="no browser to drive: selenium is not installed")
pytest.importorskip("starlette", reason="no page: the extra `view` is not installed")

import shards
from demo import photos
from demo.trees import TREES, Tree
from pipelines.__main__ import main as pipelines
from schemas import Expression, Span, record
from shards.__main__ import main
from shards.place import at
from shards.view import app
from shards.view.runs import Run
from shards.view.tokens import read
from shards.view.upstream import Upstream
from tests.ceph import S3
from tests.shards import chromium
from tests.shards.chromium import UNNAMED, WIDER, Browser, served
from tests.shards.records import Item, captioned, everything, several

pytestmark = pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing()))
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as made:
        yield made


@pytest.fixture(scope="module")
def page(written: Path) -> Iterator[str]:
    """The address of the seven records' page."""
    with served(written) as address:
        yield address


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    pytest.importorskip("skimage", reason="no photographs: scikit-image is not installed")
    folder, deck = tmp_path_factory.mktemp("upstream"), photos.Deck()
    return {name: module.write(folder / name, deck) for name, module in TREES.items()}


@pytest.fixture(scope="module")
def places(trees: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The six sources, converted when first asked for."""

    class Places(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = tmp_path_factory.mktemp("places") / name
            flags = [*trees[name].flags(), "--max-reject-rate", "0.3", "--workers", "1"]
            assert pipelines(["convert", name, *flags, "--out", str(self[name])]) == 0
            return self[name]

    return Places()


def get(address: str, path: str, host: str | None = None) -> tuple[int, bytes]:
    """Status and body of a request that no browser would make."""
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)) as connection:
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", host or urlsplit(address).netloc)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()


SEEN = {  # a record of each source, what has to stand on its page, in this order, and how often some elements occur at least
    "llava": (18, ["user", "assistant"], {"figure.image": 1, ".turn": 2}),
    "coco": (0, ["Regions", "Label map"], {"g.box": 2, "image.mask": 2, "img.map": 1, ".choice": 1, ".legend li": 2}),
    "mmc4": (1, [], {"figure.image": 2, ".said > .text": 2}),
    "visual_genome": (1, ["Regions", "Expressions", "Relations"], {"g.box": 2, "[aria-label=Relations] li": 1, ".choice": 1}),
    "laion": (0, [], {"figure.image": 1, ".said > .text": 1}),
    "grand": (1, ["Regions"], {"mark[data-regions]": 1, "image.mask": 1, "g.box": 1, ".phrases q": 1}),
}


@pytest.mark.parametrize("source", SEEN)
def test_a_record_of_each_source_is_seen(source: str, places: dict[str, Path], browser: Browser) -> None:
    number, said, elements = SEEN[source]
    stored = shards.open(places[source])[number].record

    with served(places[source]) as address:
        browser.open(f"{address}/record/{number}")
        browser.loaded()
        body = browser.run("return document.body.innerText")

    assert stored.key in body
    at = 0
    for words in said:
        at = body.index(words, at)
    for selector, least in elements.items():
        assert len(browser.all(selector)) >= least, selector
    for part in stored.turns[0].parts:
        if part.text:
            assert str(part.text).split()[0] in body
    assert len(browser.all(".canvas > img:first-child")) == sum(part.image is not None for turn in stored.turns for part in turn.parts)
    assert browser.run(UNNAMED) == []


def test_interleaved_text_and_images_stand_in_reading_order(page: str, browser: Browser) -> None:
    browser.open(f"{page}/record/0")
    browser.loaded()

    order = browser.run("""return [...document.querySelector('.said').children].map(e =>
        e.matches('figure') ? 'image ' + e.dataset.image : e.textContent)""")

    assert order == ["image 0", "a ", "dog0 1", " ", "region 0 dog", "runs", "image 1"]


def test_a_phrase_lights_its_regions_and_a_region_its_phrases(page: str, browser: Browser) -> None:
    browser.open(f"{page}/record/0")
    browser.loaded()
    outer, inner = browser.all("mark[data-regions]")

    browser.point(outer)
    assert browser.run("return [...document.querySelectorAll('g.box.lit')].map(e => e.dataset.regions)") == ["0"]
    browser.point(inner)
    assert browser.run("return [...document.querySelectorAll('image.mask.lit')].map(e => e.dataset.regions)") == ["1"]

    browser.point(browser.all("ul.regions li")[1])
    assert browser.run("return [...document.querySelectorAll('mark.lit')].map(e => e.dataset.regions)") == ["0 1"]
    browser.point(browser.one("h1"))
    assert browser.all(".lit") == []


def test_the_focus_lights_as_the_pointer_does(page: str, browser: Browser) -> None:
    browser.open(f"{page}/record/0")

    browser.run("document.querySelector('mark[data-regions]').focus()")

    assert browser.all("ul.regions li.lit")


def test_layers_can_be_taken_off(page: str, browser: Browser) -> None:
    browser.open(f"{page}/record/0")
    boxes = browser.one("g.box")
    assert boxes.is_displayed()

    browser.one("[data-toggle=boxes]").click()

    assert not boxes.is_displayed()


def test_keys_lead_through_the_records(page: str, browser: Browser) -> None:
    browser.open(f"{page}/record/2")

    browser.press("j")
    browser.until("return location.pathname == '/record/3'")
    browser.press("\ue012")  # arrow left
    browser.until("return location.pathname == '/record/2'")
    browser.press("b")
    browser.until("return location.pathname == '/'")
    browser.press("r")
    browser.until("return location.pathname.startsWith('/record/')")
    browser.press("/")
    assert browser.run("return document.activeElement.name") == "to"


@pytest.mark.parametrize("to", ["5", "000000-00000007"])
def test_a_record_is_found_by_number_and_by_key(to: str, page: str, written: Path, browser: Browser) -> None:
    browser.open(page)

    browser.one("input[name=to]").send_keys(f"{to}\n")

    browser.until("return location.pathname.startsWith('/record/')")
    data = shards.open(written)
    assert data[int(browser.path().rpartition("/")[2])].key in {to, data[5].key}


def test_a_link_by_key_stays_right(page: str, written: Path, browser: Browser) -> None:
    browser.open(f"{page}/record/4")

    browser.one("a[href^='/key/']").click()

    browser.until("return location.pathname == '/record/4'")


def test_a_record_that_is_not_there_is_said_so(page: str) -> None:
    for path in ("/record/7", "/go?to=nobody", "/key/999999-00000000", "/picture/0/2", "/picture/0/-1", "/map/0/9", "/mask/0/0"):
        status, body = get(page, path)
        assert (status, b"Traceback" in body) == (404, False), path


def test_an_answer_is_sent_at_once() -> None:
    with app.listen(0) as listening, socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_filter_leaves_what_passes(page: str, browser: Browser) -> None:
    browser.open(page)
    assert len(browser.all("a.tile")) == 7
    browser.one(".filter summary").click()
    browser.one("input[name=images_min]").send_keys("2")
    browser.one(".filter button").click()
    browser.until("return location.search.includes('images_min=2')")

    assert [str(tile.get_attribute("href")).split("?")[0] for tile in browser.all("a.tile")] == [f"{page}/record/0"]
    browser.open(f"{page}/?text_length_max=9&longest_side_min=8")
    assert len(browser.all("a.tile")) == 6
    browser.open(f"{page}/?source=nobody")
    assert "No record passes" in browser.one(".empty").text


def test_next_keeps_to_the_filter(page: str, browser: Browser) -> None:
    browser.open(f"{page}/record/0?images_min=1&images_max=1")

    browser.press("j")
    browser.until("return location.pathname == '/record/1'")
    browser.press("k")

    browser.until("return document.querySelector('h1').textContent == 'No more records'")


def test_rejects_are_listed_by_reason(page: str, browser: Browser) -> None:
    browser.open(f"{page}/rejects")

    assert browser.texts("main section > h2") == ["language 1", "text_unicode 1"]
    browser.all(".reasons a")[1].click()
    browser.until("return location.search.includes('reason=')")
    assert len(browser.all("table.ledger tbody tr")) == 1


@pytest.mark.parametrize(
    ("source", "reason", "said", "pictures"),
    [
        ("coco", "size_differs", '"file_name"', 1),
        ("llava", "image_truncated", '"conversations"', 1),
        ("mmc4", "schema", '"text_list"', 0),  # a line of a zip
        ("laion", "image_truncated", '"caption"', 1),  # a row of a parquet file; the picture is in the tar beside it
        ("grand", "image_truncated", '"objects"', 1),  # a member of a tar.gz
        ("grand", "json", '{"sa_309005.jpg"', 0),
    ],
)
def test_a_reject_shows_its_row_and_its_picture(
    source: str, reason: str, said: str, pictures: int, trees: dict[str, Tree], places: dict[str, Path], browser: Browser
) -> None:
    with served(places[source], upstream=Upstream([trees[source].folder])) as address:
        browser.open(f"{address}/rejects?reason={reason}")
        browser.run("for (const i of document.images) i.loading = 'eager'")
        browser.until("return [...document.images].every(i => i.complete)")  # a picture that was cut off is shown as far as it goes

        assert said in browser.one("pre.row").text
        assert len(browser.all("img.reject")) == pictures
        assert not browser.all("[data-go-on]")


def test_numbers_are_those_of_the_data_set(page: str, browser: Browser) -> None:
    browser.open(f"{page}/numbers")
    browser.until("return document.querySelector('.progress').textContent.startsWith('All')")

    assert browser.one(".sum").text.startswith("read 9 = written 7 + rejected 2; 77.78 % became records")
    images = browser.one("svg[aria-label^='Images per record']")
    assert [bar.get_attribute("textContent") for bar in images.find_elements("css selector", "rect.bar title")] == [
        "1 images: 6 records",
        "2 images: 1 records",
    ]


def test_conversion_is_drawn_over_the_time_that_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser) -> None:
    place = tmp_path / "place"
    monkeypatch.setattr(sys.modules["shards.write"], "UNIT", 2)
    shards.write(place, several(8), source="made")

    with served(place) as address:
        browser.open(f"{address}/numbers")
        assert "Conversion rate unknown: all units were committed within a second" in browser.one("main").text
        assert browser.all("svg[aria-label^='Conversion: records']") == []
    for unit, path in enumerate(sorted((place / "_units").iterdir())):
        os.utime(path, (1e9 + 60 * unit, 1e9 + 60 * unit))
    with served(place) as address:
        browser.open(f"{address}/numbers")
        assert "Converted at 0.033 records/s" in browser.one("main").text
        bars = browser.all("svg[aria-label^='Conversion: records'] rect.bar title")
        assert bars[0].get_attribute("textContent") == "0 minutes at work, from the first unit on: 0.033 records a second"


def test_a_run_is_drawn(written: Path, tmp_path: Path, browser: Browser) -> None:
    lines = [
        {
            "step": step,
            "loss": 4.0 - step,
            "loss_by_source": {"made": 4.0 - step, "<b>other": 2.0},
            "lr": 1e-3,
            "seconds": 0.5,
            "seconds_waiting": 0.1,
            "tokens_supervised": 10,
            "updated": True,
            "served_by_source": {"made": 4.0, "<b>other": 4.0},
            "share_asked": {"made": 0.5, "<b>other": 0.5},
        }
        for step in range(3)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    (tmp_path / "recipe.toml").write_text(f'seed = 3\n[[sources]]\nname = "made"\nshards = {json.dumps(str(written))}\n')

    with served(written, run=Run(tmp_path)) as address:
        browser.open(f"{address}/run")
        browser.loaded()

    assert browser.texts("figure.plot > figcaption") == [
        "Loss by source",
        "Learning rate",
        "Share of time waiting for data",
        "Throughput",
    ]
    assert browser.texts("tbody tr:first-child td")[-7:] == ["50.00 %", "50.00 %", "12", "0", "0", "1.714", "57,143"]
    assert "<b>other" in browser.texts("ul.key li")[1]
    assert len(browser.all("a.tile")) == 12


def test_what_is_trained_on_is_marked(written: Path, tmp_path: Path, browser: Browser) -> None:
    key = shards.open(written)[1].key
    line = {"source": "s", "key": key, "input_ids": [-200, 5, 6], "labels": [-100, -100, 6], "images": [0], "text": "<image>a bus"}
    (tmp_path / "tokens.jsonl").write_text(json.dumps(line | {"spans": [[0, 7], [7, 9], [9, 12]]}) + "\n")

    with served(written, tokens=read(tmp_path / "tokens.jsonl")) as address:
        browser.open(f"{address}/record/1")

        assert (browser.texts(".tokens .context"), browser.texts(".tokens ins")) == (["<image>a "], ["bus"])
        assert "3 tokens, 1 trained on, 1 image" in browser.one(".seen").text


def hostile() -> Item:
    """A record whose every text is an attack."""
    made = everything()
    made.record.turns[0] = record.turn(
        "user", [record.image_part(0), record.text_part(ATTACK), record.image_part(1)], spans=[Span(0, 20, ["r1"])]
    )
    made.record.regions[0].label = ATTACK
    made.record.regions[0].attributes = json.dumps({"a": ATTACK})
    made.record.relations[0].predicate = ATTACK
    made.record.expressions = [Expression(ATTACK, ["r1"])]
    made.record.images[0].origin = f'"{ATTACK}'
    made.record.meta = json.dumps({"id": ATTACK})
    return made


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile") / "place"
    shards.write(place, [hostile(), captioned(ATTACK), captioned("x", language=ATTACK)], source="made")
    return place


def test_a_hostile_caption_is_only_text(attacked: Path, tmp_path: Path, browser: Browser) -> None:
    report = tmp_path / "report.html"
    assert main(["view", str(attacked), "--export", str(report)]) == 0
    with served(attacked) as address:
        for url in (address, f"{address}/record/0", f"{address}/record/1", f"{address}/rejects", f"{address}/numbers", report.as_uri()):
            browser.open(url)
            assert ("owned" in browser.driver.title, browser.all("main script, img[src=x]")) == (False, []), url
        browser.open(f"{address}/record/0")
        assert browser.run("return document.body.textContent").count(ATTACK) >= 4
        assert not [line for line in browser.driver.get_log("browser") if "Content Security" in line["message"]]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "//etc/passwd",
        "/picture/..%2f..%2fetc%2fpasswd/0",
        "/../../../../etc/passwd",
        "/static/view.css%00.py",
        "/manifest.json",
        "/000000-000.tar",
    ],
)
def test_no_path_leads_out(path: str, page: str) -> None:
    status, body = get(page, path)

    assert status == 404
    assert b"root:" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "[::1]", ""])
def test_another_host_name_is_refused(host: str, page: str) -> None:
    assert get(page, "/", host or " ")[0] in (400, 421)


def test_the_names_of_this_machine_are_answered(page: str) -> None:
    port = urlsplit(page).port
    assert [get(page, "/", host)[0] for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}")] == [200, 200, 200]


def test_damage_is_told_and_the_others_are_shown(tmp_path: Path, browser: Browser) -> None:
    place = tmp_path / "place"
    shards.write(place, [captioned(f"picture {n}", seed=n) for n in range(3)], source="made")
    info = shards.open(place).shards[0]
    with (place / info.name).open("r+b") as tar:
        tar.seek(info.members(1)[0][1] + 20)
        tar.write(b"damaged")

    with served(place) as address:
        browser.open(address)
        assert len(browser.all("a.tile")) == 3
        assert "record altered" in browser.one("a.tile.damaged").text
        browser.one("a.tile.damaged").click()
        browser.until("return location.pathname == '/record/1'")
        assert "record altered" in browser.one(".problem").text
        assert get(address, "/picture/1/0")[0] == 422


@pytest.mark.parametrize("width", [390, 1200])
def test_pages_fit_a_phone_and_weigh_little(width: int, page: str, browser: Browser) -> None:
    assets = sum(len(get(page, f"/static/{name}")[1]) for name in ("view.css", "view.js"))
    browser.size(width, 800)
    try:
        for path in ("/", "/record/0", "/numbers", "/rejects"):
            browser.open(page + path)
            assert browser.run(WIDER) <= 0, path
            assert browser.run(UNNAMED) == []
            assert len(browser.all("h1")) == 1
            assert len(get(page, path)[1]) + assets < 300_000
    finally:
        browser.size(1200, 900)


def test_the_report_stands_alone(written: Path, tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"

    assert main(["view", str(written), "--export", str(report), "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == {"report": str(report), "bytes": report.stat().st_size}
    browser.open(report.as_uri())
    browser.loaded()
    assert len(browser.all(".sheet")) == 7
    assert browser.texts("#rejects h3") == ["language 1", "text_unicode 1"]
    assert browser.all("svg[aria-label^='Text length']")
    browser.point(browser.all("mark[data-regions]")[0])
    assert browser.all("g.box.lit")
    assert browser.run(
        """return [...document.querySelectorAll('[src], [href]')].every(
          e => /^(data:|#)/.test(e.getAttribute('src') || e.getAttribute('href')))"""
    )


def test_a_bucket_is_browsed_by_range(written: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    place, local = at(s3.bucket()), at(written)
    for name, _ in local.names():
        place.write(name, local.read(name))

    with served(place.url) as address:
        assert get(address, "/")[1].count(b'class="tile"') == 7
        assert get(address, "/record/0")[0] == 200
        assert get(address, "/picture/0/1")[1] == bytes(shards.open(written)[0].image(1))
        assert b"All" in get(address, "/numbers")[1]


def test_the_command_serves_until_it_is_interrupted(written: Path, root: Path) -> None:
    words = [sys.executable, "-m", "shards", "view", str(written), "--no-browser", "--json"]
    started = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line, started.communicate(timeout=60)
        address = json.loads(line)["address"]
        assert get(address, "/record/0")[0] == 200
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
        started.wait()
    assert (started.returncode, "Traceback" in said) == (0, False)


def test_a_wrong_request_is_one_line(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--run", str(tmp_path)], ["--upstream", str(tmp_path / "no")], ["--tokens", str(tmp_path / "no")]):
        assert main(["view", str(written), *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
