"""The client of a vision-language model, against a server that answers as vLLM's does, and as broken ones do."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from data_pipeline.models.protocols import Verdict
from data_pipeline.models.server import ServerError, VisionServer, parse
from data_pipeline.stage import UnavailableError
from evaluation.metrics.vlm import Judge

YES = {"same_person": True, "same_hair": True, "same_outfit": False}


def completion(content):
    """vLLM's answer of /v1/chat/completions."""
    message = {"role": "assistant", "content": content, "refusal": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    usage = {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1}
    told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(told | {"usage": usage})


@pytest.fixture
def server():
    """A server; `answers` are (status, text) in turn, the last one for ever; `asked` what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
            answers = self.server.answers
            status, text = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            if status == 302:
                self.send_header("Location", text)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.answers, running.asked = [(200, completion(json.dumps(YES)))], []
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def elsewhere():
    """Another server, to which a request may be redirected; `keys` are the headers Authorization that it gets."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.keys.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.keys = []
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def client(server, **settings):
    return VisionServer(f"http://127.0.0.1:{server.server_port}/v1", "m", backoff=0.0, **settings)


def pictures():
    return [np.full((20, 30, 3), value, np.uint8) for value in (10, 200)]


def shown(request):
    """The pictures of a request, decoded."""
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]


def test_a_verdict_is_asked_for_with_both_pictures_in_order(server, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    assert client(server, key_variable="A_KEY").verdict(*pictures()) == Verdict(True, True, False)
    path, headers, body = server.asked[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert [picture.mean() for picture in shown(body)] == [10, 200]


def test_the_key_does_not_follow_a_redirection_to_another_server(server, elsewhere, monkeypatch, tmp_path):
    monkeypatch.setenv("A_KEY", "secret")
    server.answers = [(302, f"http://localhost:{elsewhere.server_port}/")]
    client(server, key_variable="A_KEY").verdict(*pictures())
    Judge(f"http://127.0.0.1:{server.server_port}/v1", "m", tmp_path, "secret")._post({})
    assert [headers["Authorization"] for _, headers, _ in server.asked] == ["Bearer secret"] * 2
    assert elsewhere.keys == [None] * 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "yes",
        "[true, true, true]",
        "null",
        None,
        json.dumps(YES)[:-3],
        json.dumps(YES | {"note": "x"}),
        json.dumps({"same_person": True}),
        json.dumps(YES | {"same_hair": "yes"}),
        json.dumps(YES | {"same_hair": 1}),
        f"Here is the answer: {json.dumps(YES)}",
        "[" * 100_000,
    ],
)
def test_a_malformed_verdict_is_none(content, server):
    server.answers = [(200, completion(content))]
    assert client(server).verdict(*pictures()) is None


@pytest.mark.parametrize("answer", ["", "<html>", "{}", '{"choices": []}', '{"choices": [{"message": {}}]}', "[]", "3"])
def test_an_answer_that_is_no_completion_is_none(answer, server):
    server.answers = [(200, answer)]
    assert client(server).verdict(*pictures()) is None


def test_a_code_fence_is_taken_off():
    assert parse(completion(f"```json\n{json.dumps(YES)}\n```"), tuple(YES)) == YES


def test_captions_come_in_two_requests_and_wrong_ones_are_empty(server):
    told = [{"caption": "A man\n in a  red coat."}, {"caption": "The person walks."}]
    server.answers = [(200, completion(json.dumps(one))) for one in told]
    assert client(server).captions(pictures()) == ("A man in a red coat.", "The person walks.")
    assert [len(shown(body)) for _, _, body in server.asked] == [1, 2]
    for wrong in ({"caption": 3}, {"caption": "x" * 5000}, {"words": "x"}):
        server.answers = [(200, completion(json.dumps(wrong)))]
        assert client(server).captions(pictures()) == ("", "")
    server.answers = [(200, completion('{"caption": "half \\ud800 pair"}'))]
    assert client(server).captions(pictures())[0] == "half pair"


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server):
    server.answers = [(503, "loading"), (429, "slow down"), (200, completion(json.dumps(YES)))]
    assert client(server).verdict(*pictures()) == Verdict(True, True, False)
    assert len(server.asked) == 3
    server.answers = [(404, "no such model")]
    with pytest.raises(UnavailableError, match="404"):
        client(server).verdict(*pictures())
    assert len(server.asked) == 4


@pytest.mark.parametrize(("status", "times"), [(400, 1), (500, 4)])
def test_a_request_that_the_server_cannot_take_is_a_fault_of_its_source(status, times, server):
    server.answers = [(status, "the prompt is too long")]
    with pytest.raises(ServerError, match=str(status)):
        client(server).verdict(*pictures())
    assert len(server.asked) == times


def test_a_server_that_is_not_there_is_an_error_after_its_attempts():
    with pytest.raises(UnavailableError, match="2 times"):
        VisionServer("http://127.0.0.1:9/v1", "m", attempts=2, backoff=0.0).verdict(*pictures())


def test_large_pictures_are_sent_small(server):
    large = np.zeros((3000, 1000, 3), np.uint8)
    client(server).verdict(large, large)
    assert [picture.shape for picture in shown(server.asked[0][2])] == [(768, 256, 3)] * 2
