"""The page of films: a real process, asked over the network and in a real browser."""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from hapre_jax import serve
from hapre_jax.errors import UserError
from hapre_jax.serving import inference

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def _png(seed=0, shape=(60, 50)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(finished_run, tmp_path_factory):
    """Port of a server in a process of its own, whose folder stays empty."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "hapre_jax.serve", str(finished_run)]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=folder
    )
    said = process.stdout.readline()
    yield int(re.search(r"http://127\.0\.0\.1:(\d+) ", said)[1])
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)
    process.stdout.close()
    assert list(folder.iterdir()) == []


def _ask(port, method, path, body=None, headers=None):
    """Status, headers and content of a reply."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as line:
        line.request(method, path, body, headers or {})
        reply = line.getresponse()
        return reply.status, reply.headers, reply.read()


def _answer(port, content, name="film.png", kind="application/octet-stream"):
    path = "/answer?name=" + urllib.parse.quote(name)
    status, _, found = _ask(port, "POST", path, content, {"Content-Type": kind})
    return status, json.loads(found)


def test_the_page_loads_nothing_and_runs_its_own_script_alone(server):
    status, headers, page = _ask(server, "GET", "/")
    assert status == 200 and b"Not for clinical use" in page
    assert b"normal, bacterial, viral" in page and b"://" not in page
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert headers["Cache-Control"] == "no-store"


def test_a_film_is_answered(server):
    status, found = _answer(server, _png())
    assert status == 200
    shares = found["probabilities"]
    assert found["answer"] == max(shares, key=shares.get)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    top, left, bottom, right = found["key_area"]
    assert 0 <= top < bottom <= 60 and 0 <= left < right <= 50
    assert set(found["pictures"]) == {"film", "crop", "heat"}
    for url in found["pictures"].values():
        start, _, content = url.partition(",")
        assert start == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.size == (384, 384)


@pytest.mark.parametrize(
    "content, kind, status, said",
    [
        (b"no film", "application/octet-stream", 422, "a.png cannot be read: not an"),
        (b"", "application/octet-stream", 422, "a.png is empty"),
        (_png(), "text/html", 415, "content of type 'text/html' is no film"),
        (_png()[:200], "image/png", 422, "a.png cannot be read"),
        (bytes(serve.MAX_BYTES + 1), "image/png", 413, "more than 64 MiB"),
    ],
)
def test_what_is_no_film_is_refused_in_one_sentence(
    server, content, kind, status, said
):
    found_status, found = _answer(server, content, "a.png", kind)
    assert found_status == status
    assert set(found) == {"error"} and said in found["error"]


def test_a_film_that_is_masked_is_shown_without_a_crop(finished_run):
    model = inference.load(finished_run)
    assert set(serve.answer(model, "a", _png())["pictures"]) == {"film", "crop", "heat"}
    policy = dataclasses.replace(model.config.policy, operation="mask")
    masked = dataclasses.replace(model.config, policy=policy)
    found = serve.answer(model._replace(config=masked, explain=None), "a", _png())
    assert set(found["pictures"]) == {"film"}


def test_a_stream_without_an_end_is_cut_off(server):
    """Chunked, so that no header says how much there is to come."""

    def parts():
        for _ in range(serve.MAX_BYTES // 2**20 + 8):
            yield bytes(2**20)

    headers = {"Content-Type": "image/png", "Transfer-Encoding": "chunked"}
    try:
        status, _, _ = _ask(server, "POST", "/answer", parts(), headers)
    except (BrokenPipeError, ConnectionResetError):
        status = 413  # hung up on while still sending
    assert status == 413
    assert _answer(server, _png())[0] == 200


async def _now(message):
    return message


async def _cancelled():
    raise asyncio.CancelledError


def _post(app, next_message):
    """What is sent back to who sends a byte of a.png, and then something else."""
    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": "/answer", "headers": headers}
    scope |= {"query_string": b"name=a.png"}
    sent, received = [], []

    async def receive():
        received.append(1)
        if len(received) > 1:
            return await next_message()
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("next_message", "status", "said"),
    [
        (lambda: asyncio.sleep(60), 408, "a.png did not come in 0.05 seconds"),
        (lambda: _now({"type": "http.disconnect"}), 400, "a.png did not come whole"),
        # What uvicorn does to them a while after it was told to end.
        (_cancelled, 503, "the program ends"),
    ],
)
def test_who_does_not_send_keeps_nobody_waiting(
    finished_run, monkeypatch, next_message, status, said
):
    monkeypatch.setattr(serve, "_SENDING_SECONDS", 0.05)
    app = serve.make_app(inference.load(finished_run))
    assert _post(app, next_message) == (status, {"error": said})


def test_want_of_memory_is_one_sentence(finished_run, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(serve, "answer", fail)
    app = serve.make_app(inference.load(finished_run))
    found = _post(app, lambda: _now({"type": "http.request"}))
    assert found == (507, {"error": "memory does not suffice for a.png"})


def test_a_page_of_elsewhere_gets_nothing(server):
    """As after DNS rebinding: another name leads to this computer."""
    status, _, _ = _ask(server, "GET", "/", headers={"Host": "evil.example"})
    assert status == 400


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/answer/../config.json", "/x"])
def test_there_are_no_files_behind_the_page(server, path):
    assert _ask(server, "GET", path)[0] == 404


def test_names_of_films_are_only_names(server):
    hostile = "../../<script>alert(1)</script>\n.png"
    status, found = _answer(server, b"x", hostile)
    assert status == 422 and hostile in found["error"]
    assert _answer(server, _png(), hostile)[0] == 200


def test_two_hundred_at_once_are_all_answered(server):
    """Every fifth is a film; the others are refused meanwhile."""
    films = [_png(seed) for seed in range(5)]
    alone = [_answer(server, film)[1]["probabilities"] for film in films]

    def ask(number):
        return _answer(server, b"no film" if number % 5 else films[number // 5 % 5])

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        found = list(pool.map(ask, range(200)))
    for number, (status, one) in enumerate(found):
        if number % 5:
            assert status == 422
        else:
            assert status == 200 and one["probabilities"] == alone[number // 5 % 5]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--host", "0.0.0.0"], "would let other computers ask"),
        (["--host", "hospital.example"], "would let other computers ask"),
        (["--port", "70000"], "must be from 0 to 65535"),
    ],
)
def test_it_does_not_open_to_others_by_mistake(finished_run, flags, said):
    with pytest.raises(UserError, match=said):
        serve.main([str(finished_run), *flags])


def test_a_port_in_use_is_said(finished_run, server):
    with pytest.raises(UserError, match=f"port {server}, cannot .* another --port"):
        serve.main([str(finished_run), "--port", str(server)])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser(server, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    (tmp_path / "film.png").write_bytes(_png())
    (tmp_path / "note.txt").write_text("no film")
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 500, "height": 900})
        faults = []
        page.on("pageerror", lambda fault: faults.append(fault))
        page.goto(f"http://127.0.0.1:{server}")
        page.set_input_files("#file", tmp_path / "film.png")
        page.wait_for_selector("#pictures img >> nth=2")
        assert page.inner_text("#answer").split(",")[0] in (
            "normal",
            "bacterial",
            "viral",
        )
        assert page.inner_text("#said") == "film.png"
        assert page.evaluate("document.documentElement.scrollWidth") <= 500
        assert page.evaluate("document.images[0].naturalWidth") == 384
        page.set_input_files("#file", tmp_path / "note.txt")
        page.wait_for_selector("#said:has-text('cannot be read: not an image')")
        assert not page.is_visible("#result")
        assert faults == []
        browser.close()
