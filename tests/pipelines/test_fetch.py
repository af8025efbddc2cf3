"""One URL: what a stranger's server can answer, and what it is called. No img2dataset is needed for that."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from pipelines.download import hosts
from pipelines.download.address import public
from pipelines.download.fetch import Fetcher, Rules
from pipelines.download.hosts import Hosts
from pipelines.download.status import Failure, retry
from pipelines.download.target import target
from schemas import RequestError
from tests import internet
from tests.internet import Answer, Site, moved

Ask = Callable[..., str]


@pytest.fixture
def site() -> Iterator[Site]:
    with internet.server() as running:
        yield running


@pytest.fixture
def fetcher(tmp_path: Path) -> Callable[..., Fetcher]:
    """fetcher(timeout=2, ...): one that may ask this machine."""

    def make(
        at_once: int = 100, rate: int = 10_000, private: bool = True, timeout: float = 2, retries: int = 0, insecure: bool = False
    ) -> Fetcher:
        hosts.create(tmp_path / "hosts", 1)
        rules = Rules("shardweave/test (+me@lab.example)", timeout, retries, private, insecure)
        return Fetcher(rules, Hosts(tmp_path / "hosts", 1, 0, at_once, rate))

    return make


def status(fetcher: Fetcher, url: object, seconds: float = 20) -> str:
    """What becomes of a URL."""
    try:
        fetcher.picture(url, time.monotonic() + seconds)
    except Failure as failure:
        return failure.status
    return "success"


def test_a_picture_comes_as_it_is_and_is_asked_for_honestly(
    site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]
) -> None:
    url = site.give("/a.png", Answer(photo(format="PNG")))

    data, picture = fetcher().picture(url, time.monotonic() + 20)

    assert data == photo(format="PNG")
    assert picture == ("png", 32, 24)
    assert [request.path for request in site.requests] == ["/robots.txt", "/a.png"]
    assert {request.headers["User-Agent"] for request in site.requests} == {"shardweave/test (+me@lab.example)"}


ANSWERS = {
    "http_404": Answer(404),
    "http_403": Answer(403),
    "http_500": Answer(500),
    "http_304": Answer(304),
    "http_429": Answer(429),
    "content_type": Answer(b"<html>no picture</html>", type="text/html"),
    "image_format": Answer(b"<html>no picture, whatever it says</html>"),
    "image_empty": Answer(b""),
    "image_truncated": Answer(b"\xff\xd8\xff\xe0\x00\x10JFIF"),
    "too_large": Answer(b"x", {"Content-Length": "99999999999"}),
    "connection": Answer(reset=True),
    "http_protocol": Answer(raw=b"EHLO\r\n\r\n"),
    "redirects": moved("/again"),
    "url": moved("file:///etc/passwd"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_has_its_name(site: Site, fetcher: Callable[..., Fetcher], name: str) -> None:
    assert status(fetcher(), site.give("/again", ANSWERS[name])) == name


def test_a_picture_under_a_wrong_type_is_a_picture(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    assert status(fetcher(), site.give("/a", Answer(photo(), type="text/plain"))) == "success"
    assert status(fetcher(), site.give("/b", Answer(photo(), type=None))) == "success"


def test_a_cut_body_is_named_and_never_kept(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    assert status(fetcher(), site.give("/a", Answer(photo(), cut=100))) == "cut_body"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nno more"
    assert status(fetcher(), site.give("/b", Answer(raw=chunked))) == "cut_body"


@pytest.mark.parametrize(
    "slow",
    [
        Answer(bytes(1000), after=30),
        Answer(bytes(1000), drip=0.2),
        Answer(bytes(1000), {"Content-Length": "", "Connection": "close"}, drip=0.2),
    ],
    ids=["nothing", "drips", "drips without a length"],
)
def test_the_timeout_is_for_the_whole_answer(site: Site, fetcher: Callable[..., Fetcher], slow: Answer) -> None:
    began = time.monotonic()

    assert status(fetcher(timeout=1), site.give("/slow", slow)) == "timeout"
    assert time.monotonic() - began < 15


def test_a_redirect_is_followed_to_its_end(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    site.give("/c", Answer(photo()))
    site.give("/b", moved("c"))

    assert status(fetcher(), site.give("/a", moved(f"{site.origin}/b"))) == "success"


@pytest.mark.parametrize("tag", ["noai", "noimageai", "NoIndex, nofollow", "shardweave: noai", "none"])
def test_who_opts_out_is_left_alone(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes], tag: str) -> None:
    assert status(fetcher(), site.give("/a", Answer(photo(), {"X-Robots-Tag": tag}))) == "opt_out"


@pytest.mark.parametrize("tag", ["nofollow", "otherbot: noai", "unavailable_after: 25 Jun 2030 15:00:00 PST"])
def test_what_is_said_to_others_is_not_said_to_us(
    site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes], tag: str
) -> None:
    assert status(fetcher(), site.give("/a", Answer(photo(), {"X-Robots-Tag": tag}))) == "success"


def test_robots_txt_is_asked_for_once_and_obeyed(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    rules = b"User-agent: *\nDisallow: /private/\n\nUser-agent: shardweave\nDisallow: /ours/\n"
    site.give("/robots.txt", Answer(rules, type="text/plain"))
    one = fetcher()

    assert status(one, site.give("/ours/a", Answer(photo()))) == "robots_txt"
    assert status(one, site.give("/private/a", Answer(photo()))) == "success"
    assert status(one, site.give("/b", moved("/ours/a"))) == "robots_txt"
    assert (site.asked("/robots.txt"), site.asked("/ours/a")) == (1, 0)


@pytest.mark.parametrize(("answer", "expected"), [(401, "robots_txt"), (404, "success"), (500, "robots_unreachable")])
def test_a_robots_txt_that_is_not_given(
    site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes], answer: int, expected: str
) -> None:
    site.give("/robots.txt", Answer(answer))

    assert status(fetcher(), site.give("/a", Answer(photo()))) == expected


def test_what_may_pass_is_tried_again_and_what_may_not_is_not(
    site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]
) -> None:
    assert status(fetcher(retries=2), site.give("/a", Answer(503), Answer(500), Answer(photo()))) == "success"
    assert status(fetcher(retries=2), site.give("/b", Answer(404), Answer(photo()))) == "http_404"
    assert (site.asked("/a"), site.asked("/b")) == (3, 1)


def test_retry_after_is_obeyed_by_every_url_of_the_host(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    one = fetcher()
    url = site.give("/a", Answer(429, {"Retry-After": "1"}), Answer(photo()))
    status(one, site.give("/first", Answer(photo())))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(status, one, url)
        while not site.asked("/a"):
            time.sleep(0.01)
        time.sleep(0.2)
        other = pool.submit(status, one, site.give("/b", Answer(photo())))
        assert (first.result(), other.result()) == ("success", "success")

    refused, *later = [request.at for request in site.requests if request.path in ("/a", "/b")]
    assert len(later) == 2
    assert all(at - refused > 0.95 for at in later)


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(
    site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]
) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    one = fetcher()

    assert status(one, site.give("/a", Answer(429, {"Retry-After": in_an_hour}), Answer(photo()))) == "http_429"
    assert status(one, site.give("/b", Answer(photo()))) == "http_429"
    assert site.asked("/b") == 0


def test_a_host_is_asked_no_more_at_once_than_it_may_be(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    one = fetcher(at_once=3)
    urls = [site.give(f"/{number}", Answer(photo(), after=0.05)) for number in range(20)]

    with ThreadPoolExecutor(20) as pool:
        assert {*pool.map(lambda url: status(one, url), urls)} == {"success"}

    assert site.most == 3


def test_a_host_is_asked_no_more_a_second_than_it_may_be(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    one = fetcher(rate=20)
    urls = [site.give(f"/{number}", Answer(photo())) for number in range(10)]

    with ThreadPoolExecutor(10) as pool:
        assert {*pool.map(lambda url: status(one, url), urls)} == {"success"}

    assert site.requests[-1].at - site.requests[0].at > 9.5 / 20


def test_who_does_not_get_a_turn_before_the_deadline_is_told(
    site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]
) -> None:
    one = fetcher(at_once=1)
    holds = threading.Thread(target=status, args=(one, site.give("/slow", Answer(photo(), after=2)), 20))
    holds.start()
    while not site.asked("/slow"):
        time.sleep(0.01)

    assert status(one, site.give("/a", Answer(photo())), seconds=0.3) == "deadline"
    holds.join()


def test_private_addresses_are_not_asked(site: Site, fetcher: Callable[..., Fetcher], photo: Callable[..., bytes]) -> None:
    url = site.give("/a", Answer(photo()))

    assert status(fetcher(private=False), url) == "private_address"
    assert status(fetcher(private=False), url.replace("127.0.0.1", "localhost")) == "private_address"
    assert site.requests == []


PRIVATE = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.1.1
::1 fe80::1%eth0 fd00::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1::
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_what_is_no_public_address(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_what_is_one(address: str) -> None:
    assert public(address)


@pytest.mark.parametrize("url", [None, 7, "", "ftp://a/b", "file:///etc/passwd", "data:image/png;base64,AA", "http://", "http://a:99999/"])
def test_what_is_no_url(fetcher: Callable[..., Fetcher], url: object) -> None:
    assert status(fetcher(), url) == "url"


def test_a_url_is_sent_as_servers_expect_it() -> None:
    assert target("HTTP://user:word@Bücher.example:80/ä b?q=ü\r\nX: y#part").url == "http://xn--bcher-kva.example/%C3%A4%20b?q=%C3%BCX:%20y"
    assert target("https://a.example").authority == "a.example"
    assert target("http://[::1]:81/").authority == "[::1]:81"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_https_is_asked_where_its_certificate_is_good(fetcher: Callable[..., Fetcher], photo: Callable[..., bytes], tmp_path: Path) -> None:
    certificate = tmp_path / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-out"]
    subprocess.run([*command, certificate, "-keyout", tmp_path / "key.pem"], check=True, capture_output=True, timeout=60)
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "key.pem").read_bytes())

    with internet.server(certificate=certificate) as site:
        url = site.give("/a.jpg", Answer(photo()))
        assert status(fetcher(), url) == "tls"
        assert status(fetcher(insecure=True), url) == "success"
        assert status(fetcher(insecure=True, timeout=1), site.give("/slow", Answer(photo(), drip=0.1))) == "timeout"


def test_a_name_that_does_not_exist(fetcher: Callable[..., Fetcher]) -> None:
    assert status(fetcher(), "http://no-such-host.invalid/a.jpg") == "name_resolution"


def test_what_retry_means() -> None:
    assert retry("").wants("timeout", 1)
    assert not retry("").wants("timeout", 2)
    assert not retry("").wants("http_404", 1)
    assert retry("transient").wants("http_503", 7)
    assert retry("http_404, timeout").wants("http_404", 7)
    assert not retry("http_404").wants("timeout", 1)
    assert retry("all").wants("error", 1)
    assert not retry("all").wants("success", 1)
    assert not retry("none").wants("timeout", 1)
    with pytest.raises(RequestError, match="'htp_404'"):
        retry("htp_404")
