"""The client of an engine: what it sends, and what it makes of servers that misbehave."""

from __future__ import annotations

import math
import socket
import threading
import time
from typing import Any

import pytest

from tests.sync.http_server import MODELS, completion, http_server, send
from trimtab.errors import SettingsError, SyncError
from trimtab.sync.engines.client import EngineClient


def client(url: str, **more: Any) -> EngineClient:
    return EngineClient(url, **{"retries": 2, "pause": 0.01, "timeout": 5.0, **more})


def ask(to: EngineClient, prompts: list[list[int]], num: int = 1, **more: Any) -> Any:
    return to.complete(prompts, [num] * len(prompts), max_tokens=4, end_tokens=[1], **more)


def test_what_is_asked_and_answered() -> None:
    asked = []

    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        asked.append((handler.path, content))
        return completion(content)

    with http_server(answer) as url:
        made = ask(client(url), [[2, 3], [4]], 2, seeds=[7, 8], more={"top_k": 5})
    assert [len(group) for group in made] == [2, 2]
    assert made[0][0].token_ids == (5, 6, 1)
    assert made[0][0].log_probs == (-0.5, -1.0, -1.5)
    assert made[0][0].has_ended
    asked.sort(key=lambda each: each[1]["seed"])
    path, first = asked[0]
    assert path == "/v1/completions"
    assert [each["prompt"] for _, each in asked] == [[2, 3], [4]]
    expected = {"model": "tiny", "n": 2, "temperature": 1.0, "ignore_eos": True, "top_k": 5}
    assert expected.items() <= first.items()
    assert first["return_token_ids"] and first["logprobs"] == 0


def test_prompts_are_asked_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)

    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        both.wait()
        return completion(content)

    with http_server(answer) as url:
        assert len(ask(client(url), [[2], [3]])) == 2


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SyncError, match=r"no server answers .*: is it running\? \(3 tries\)"):
        ask(client(url), [[2]])


def test_a_server_that_hangs() -> None:
    done = threading.Event()

    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        done.wait(20)
        return None

    with http_server(answer) as url:
        started = time.monotonic()
        with pytest.raises(SyncError, match=r"no whole answer within 0\.3 s"):
            ask(client(url, timeout=0.3), [[2], [3]])
        assert time.monotonic() - started < 10  # not the 20 s of the server, nor three times
        done.set()


def test_a_server_that_drips() -> None:
    """Each part comes in time, the whole never would."""

    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        send(handler, 200, b"[", 10_000)
        for _ in range(200):
            handler.wfile.write(b" ")
            time.sleep(0.05)
        return None

    with http_server(answer) as url, pytest.raises(SyncError, match="no whole answer within"):
        ask(client(url, timeout=0.5), [[2]])


@pytest.mark.parametrize("kind", ["500", "cut off", "closed", "not json"])
def test_what_passes_is_tried_again(kind: str) -> None:
    calls = []

    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        calls.append(kind)
        if len(calls) > 2:
            return completion(content)
        if kind == "500":
            send(handler, 500, b'{"error": {"message": "out of luck"}}')
        elif kind == "cut off":
            send(handler, 200, b'{"choices": [', 1000)
        elif kind == "not json":
            send(handler, 200, b"<html>")
        handler.close_connection = True
        return None

    with http_server(answer) as url:
        assert ask(client(url), [[2]])[0][0].token_ids == (5, 6, 1)
        assert len(calls) == 3


def test_an_error_that_stays() -> None:
    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        send(handler, 503, b'{"error": {"message": "is\\u001b[31m asleep"}}')
        return None

    said = r"status 503: is\\u001b\[31m asleep \(3 tries\)"
    with http_server(answer) as url, pytest.raises(SyncError, match=said):
        ask(client(url), [[2]])


def test_what_the_server_refuses_is_not_tried_again() -> None:
    calls = []

    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        calls.append(1)
        send(handler, 400, b'{"error": {"message": "no such thing as top_q"}}')
        return None

    with http_server(answer) as url, pytest.raises(SyncError, match="status 400: no such thing"):
        ask(client(url), [[2]])
    assert len(calls) == 1


def test_another_model_and_a_short_context() -> None:
    with http_server(lambda handler, content: MODELS) as url:
        with pytest.raises(SyncError, match="model is 'big', and the server has tiny"):
            ask(client(url, model="big"), [[2]])
        with pytest.raises(SyncError, match=r"a prompt has 30 tokens .* --max-model-len 34"):
            ask(client(url), [[2] * 30])


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"token_ids": [5, 6]},
        {"logprobs": None},
        {"logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": ["5", "6", "7"]},
        {"logprobs": {"token_logprobs": [0.5, -1.0, -1.0]}},
        {"token_ids": [], "logprobs": {"token_logprobs": []}},
    ],
)
def test_another_kind_of_answer(choice: dict[str, Any]) -> None:
    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        made = completion(content)
        made["choices"] = [{**made["choices"][0], **choice}] if choice else made["choices"] * 2
        return made

    with http_server(answer) as url, pytest.raises(SyncError, match="expected vLLM"):
        ask(client(url), [[2]])


def test_a_log_probability_that_is_missing() -> None:
    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        made = completion(content)
        made["choices"][0]["logprobs"]["token_logprobs"][1] = None
        return made

    with http_server(answer) as url:
        assert math.isnan(ask(client(url), [[2]])[0][0].log_probs[1])


def test_completions_that_the_engine_aborts() -> None:
    def answer(handler: Any, content: Any) -> Any:
        if content is None:
            return MODELS
        made = completion(content)
        made["choices"][0]["finish_reason"] = "abort"
        return made

    with (
        http_server(answer) as url,
        pytest.raises(SyncError, match="ended a completion with abort"),
    ):
        ask(client(url), [[2]])


def test_a_path_that_is_not_there() -> None:
    def answer(handler: Any, content: Any) -> Any:
        send(handler, 404, b'{"detail": "Not Found"}')
        return None

    with http_server(answer) as url:
        assert client(url).weight_version() is None
        with pytest.raises(SyncError, match="it names no model"):
            _ = client(url).model


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("127.0.0.1:8000", {}, "expected http://HOST:PORT"),
        ("file:///etc/passwd", {}, "expected http://HOST:PORT"),
        ("http://a", {"timeout": 0}, "timeout is 0"),
        ("http://a", {"retries": -1}, "retries is -1"),
        ("http://a", {"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_settings(url: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        EngineClient(url, **more)
