"""The OpenAI-compatible server, asked over HTTP as its clients do."""

import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from piip.llava import Answerer, Turn
from tests.llava.test_model import picture
from tests.llava.tiny import WORDY, save

QUESTION = "how many cats are there in this picture?"
LENGTH = 30
PATIENCE = 120  # seconds for the server to start on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llava"), WORDY)


@pytest.fixture(scope="module")
def address(folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "piip.llava.serve", str(folder), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    try:
        _wait(server, f"http://localhost:{port}/health")
        yield f"http://localhost:{port}/v1/chat/completions"
    finally:
        server.terminate()
        server.wait(30)


def _wait(server, url):
    for _ in range(PATIENCE):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(url)
        except urllib.error.URLError:
            time.sleep(1)
        else:
            return
    pytest.fail("the server did not start")


def post(address, **options):
    file = io.BytesIO()
    picture().save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    body = {"messages": messages, "temperature": 0, "max_tokens": LENGTH, **options}
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return reply.read().decode()


@pytest.fixture(scope="module")
def expected(folder):
    turns = [Turn("system", "Be brief."), Turn("user", QUESTION, (picture(),))]
    return Answerer.load(folder, "cpu").answer_all([turns], LENGTH)[0]


def test_it_answers_as_the_model_does(address, folder, expected):
    reply = json.loads(post(address, model=str(folder)))
    [choice] = reply["choices"]
    assert choice["message"]["content"].strip() == expected
    assert reply["usage"]["completion_tokens"] == LENGTH


def test_it_streams(address, expected):
    lines = [line.removeprefix("data: ") for line in post(address, stream=True).splitlines() if line]
    chunks = [json.loads(line)["choices"][0]["delta"] for line in lines if line != "[DONE]"]
    pieces = [chunk["content"] for chunk in chunks if chunk.get("content")]
    assert len(pieces) > 1
    assert "".join(pieces).strip() == expected
