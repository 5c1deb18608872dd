"""Speak with the HTTP server of vLLM: sample completions of token ids, ask what it serves."""

from __future__ import annotations

import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from trimtab.errors import SettingsError, SyncError
from trimtab.escaping import escaped
from trimtab.words import one_line

KEY = "VLLM_API_KEY"
"""Environment variable with the key that a server expects, as vLLM itself calls it."""

MAX_ANSWER_BYTES = 1 << 28

BUSY = (500, 502, 503, 504)
"""Statuses of errors that may be gone the next time."""


@dataclass(frozen=True)
class Completion:
    """A completion that an engine sampled.

    Attributes:
        token_ids: Its tokens, including the one that ended it.
        log_probs: The engine's log-probability of each token; NaN where it has none.
        has_ended: Whether it ended before the length limit.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    has_ended: bool

    def __repr__(self) -> str:
        return one_line(self, f"{len(self.token_ids)} tokens")


class EngineClient:
    """A client of a vLLM server (`vllm serve`).

    What may be gone the next time, a connection that is refused or cut off or an error of the
    server, is tried again a few times; what cannot change, such as a wrong argument, is not, and
    neither is a request that took too long.

    Attributes:
        url: Address of the server.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        timeout: float = 600.0,
        retries: int = 3,
        pause: float = 1.0,
        concurrency: int = 32,
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            url: `http://HOST:PORT`.
            model: Name of the served model; by default the first that the server names.
            timeout: Longest time in seconds that the server may take to answer a request.
            retries: How often a request is tried again.
            pause: Seconds before the first retry; each further one waits twice as long.
            concurrency: Requests that are sent at the same time.

        Raises:
            SettingsError: The URL or a number cannot be used.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise SettingsError(f"the engine is {url!r}, expected http://HOST:PORT")
        for name, value, least in (("retries", retries, 0), ("concurrency", concurrency, 1)):
            if value < least:
                raise SettingsError(f"{name} is {value}, expected at least {least}")
        if not 0 < timeout < math.inf:
            raise SettingsError(f"timeout is {timeout}, expected a number of seconds above 0")
        self.url = url.rstrip("/")
        self._model = model
        self._timeout, self._retries, self._pause = timeout, retries, pause
        self._concurrency = concurrency
        self._context: int | None = None
        self._is_known = False

    def __repr__(self) -> str:
        return one_line(self, self.url)

    def request(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """Send a request, and return the JSON of the answer.

        Args:
            path: From the root of the server: `/v1/models`.
            content: Posted as JSON; None to get.

        Returns:
            The JSON; None if the server has no such path.

        Raises:
            SyncError: There is no usable answer; the message says why.
        """
        for attempt in range(self._retries + 1):
            try:
                return self._request(path, content)
            except _PassingError as error:
                problem = str(error)
            if attempt < self._retries:
                time.sleep(self._pause * 2**attempt)
        tries = f" ({self._retries + 1} tries)" if self._retries else ""
        raise SyncError(f"{self.url}{path}: {problem}{tries}")

    def _request(self, path: str, content: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, headers)
        ends = time.monotonic() + self._timeout
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                found = bytearray()
                while part := answer.read1(1 << 20):
                    found += part
                    if time.monotonic() > ends:
                        raise TimeoutError
                    if len(found) > MAX_ANSWER_BYTES:
                        raise SyncError(f"{self.url}{path}: the answer has over 256 MiB")
                if answer.length:  # of what the header announced
                    raise _PassingError("the answer was cut off")
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error.read(1 << 16))
            if error.code in BUSY:
                raise _PassingError(f"status {error.code}: {said}") from None
            if error.code == 404 and "does not exist" not in said:
                return None
            raise SyncError(f"{self.url}{path}: status {error.code}: {said}") from None
        except TimeoutError:
            raise SyncError(self._late(path)) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise SyncError(self._late(path)) from None
            raise _PassingError(f"no server answers ({error.reason}): is it running?") from None
        except (HTTPException, OSError) as error:
            raise _PassingError(f"the connection was cut off ({type(error).__name__})") from None
        if not found:
            return {}
        try:
            return json.loads(found)
        except ValueError:
            raise _PassingError(f"the answer is not JSON: {_said(bytes(found))}") from None

    def _late(self, path: str) -> str:
        return (
            f"{self.url}{path}: no whole answer within {self._timeout:g} s: look why the server "
            "hangs, or set a longer timeout"
        )

    @property
    def model(self) -> str:
        """Name of the served model.

        Raises:
            SyncError: The server cannot be asked, or does not serve the model.
        """
        if not self._is_known or self._model is None:
            answer = self.request("/v1/models")
            try:
                served = {each["id"]: each.get("max_model_len") for each in answer["data"]}
                name = next(iter(served)) if self._model is None else self._model
            except (LookupError, TypeError, AttributeError, StopIteration):
                raise SyncError(f"{self.url}: it names no model: expected a vLLM server") from None
            if name not in served:
                raise SyncError(
                    f"{self.url}: model is {name!r}, and the server has {', '.join(served)}"
                )
            self._model, self._context, self._is_known = name, served[name], True
        return self._model

    def weight_version(self) -> str | None:
        """What the server calls the version of its weights.

        None if it does not say: vLLM does with `VLLM_SERVER_DEV_MODE=1`, from 0.30 on.
        """
        answer = self.request("/weight_info")
        return answer.get("weight_version") if isinstance(answer, dict) else None

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        num: Sequence[int],
        *,
        max_tokens: int,
        end_tokens: Sequence[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> list[list[Completion]]:
        """Sample completions of prompts, all prompts at the same time.

        The whole distribution is sampled from: defaults that the server takes from the
        generation config of its model are overruled.

        Args:
            prompts: Token ids of each prompt.
            num: Completions of each prompt.
            max_tokens: Maximum number of tokens of a completion.
            end_tokens: Token ids that end one. No other token does.
            temperature: Logits are divided by it.
            top_p: Probability mass to sample from.
            seeds: Seed of each prompt; by default the server draws one.
            more: Other fields of the request (`top_k`).

        Raises:
            SyncError: The server cannot be asked, refuses, or answers something else.
        """
        common = {
            "model": self.model,
            "max_tokens": max_tokens,
            "stop_token_ids": [*end_tokens],
            "ignore_eos": True,  # what ends a completion is in `end_tokens`
            "temperature": temperature,
            "top_p": top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0,
            "return_token_ids": True,
            **(more or {}),
        }
        longest = max(map(len, prompts), default=0)
        if self._context is not None and longest + max_tokens > self._context:
            raise SyncError(
                f"{self.url}: a prompt has {longest} tokens and a completion up to {max_tokens}, "
                f"and the context of the engine is {self._context}: start it with "
                f"--max-model-len {longest + max_tokens} or more"
            )

        def ask(row: int) -> list[Completion]:
            content = {**common, "prompt": [*prompts[row]], "n": num[row]}
            if seeds is not None:
                content["seed"] = seeds[row]
            return self._ask(content)

        if not prompts:
            return []
        with ThreadPoolExecutor(min(self._concurrency, len(prompts))) as pool:
            try:
                return list(pool.map(ask, range(len(prompts))))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, content: Mapping[str, Any]) -> list[Completion]:
        """The completions of one prompt; asked again if the engine aborted them."""
        for _ in range(self._retries + 1):
            answer = self.request("/v1/completions", content)
            try:
                reasons = {choice["finish_reason"] for choice in answer["choices"]}
                if reasons <= {"stop", "length"}:
                    ends = set(content["stop_token_ids"])
                    made = [_completion(choice, ends) for choice in answer["choices"]]
                    if len(made) != content["n"]:
                        raise ValueError
                    return made
            except (LookupError, TypeError, ValueError):
                raise SyncError(
                    f"{self.url}/v1/completions: the answer has no {content['n']} completions with "
                    "token ids and log-probabilities: expected vLLM 0.10 or later"
                ) from None
            time.sleep(self._pause)
        raise SyncError(
            f"{self.url}: the engine ended a completion with {', '.join(map(str, reasons))}, again "
            "and again: look what aborts its requests"
        )


class _PassingError(Exception):
    """What may be gone the next time."""


def _completion(choice: Mapping[str, Any], ends: set[int]) -> Completion:
    """Read a choice of an answer."""
    ids = tuple(choice["token_ids"])
    values = choice["logprobs"]["token_logprobs"]
    found = tuple(math.nan if value is None else float(value) for value in values)
    if not ids or len(ids) != len(found) or not all(type(token) is int for token in ids):
        raise ValueError
    if any(value > 1e-3 for value in found):  # a NaN is not
        raise ValueError
    return Completion(ids, found, ids[-1] in ends)


def _said(content: bytes) -> str:
    """What a server says of an error, in one short line."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except ValueError:
        pass
    # vLLM wraps what failed in one of its workers.
    text = text.rpartition("Worker failed with error '")[2].partition("', please check the")[0]
    return escaped(" ".join(text.split()))[:400] or "nothing"
