"""Engine `openai`: any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, hosted models).

A failed request is retried with exponential back-off and jitter, or after the server's `Retry-After`. Requests are
rate-limited, and each attempt has a time limit. `answers.py` reads the answers.
"""

import asyncio
import base64
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import httpx
import tenacity

from captioning.look.prompt import Prompt
from captioning.look.schema import wire_schema
from captioning.look.vision_engine import EngineGone, NoAnswer
from captioning.settings import SeenSettings

log = logging.getLogger("kinotone.caption")

_RETRY_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_MAX_WAIT_S = 60.0
_MAX_REPLY_BYTES = 4 << 20  # a longer reply is no answer


class Endpoint:
    """The engine `openai`: a client of one server. `untrained` is always False, since the client sees no weights."""

    untrained = False
    hears = False

    def __init__(self, settings: SeenSettings) -> None:
        self.settings = settings

    def ask(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        """Send all prompts concurrently, within the limits of the settings. See `VisionEngine.ask`."""
        answers = asyncio.run(self._ask_all(prompts))
        if any(isinstance(answer, _Unreached) for answer in answers):
            # If the server is gone, end the run. Otherwise every remaining clip would fail.
            try:
                probe(self.settings)
            except ValueError as error:
                raise EngineGone(str(error)) from None
        return answers

    async def _ask_all(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        slots, rate_limit = asyncio.Semaphore(self.settings.concurrency), _RateLimit(self.settings.requests_per_minute)
        async with _client(self.settings) as client:
            return list(await asyncio.gather(*(self._ask_one(client, slots, rate_limit, prompt) for prompt in prompts)))

    async def _ask_one(
        self, client: httpx.AsyncClient, slots: asyncio.Semaphore, rate_limit: "_RateLimit", prompt: Prompt
    ) -> str | NoAnswer:
        """Ask one prompt, and retry while the server fails. `slots` limits the concurrent requests."""
        body = _body(prompt, self.settings)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _RetryLater)),
            stop=tenacity.stop_after_attempt(self.settings.attempts),
            wait=_retry_wait_s,
            before_sleep=lambda state: log.info("caption.seen: %s; asked again", _describe_failure(state)),
        )
        async with slots:
            try:
                return await retrying(self._attempt, client, rate_limit, body)
            except tenacity.RetryError as error:
                return _Unreached(f"after {self.settings.attempts} attempts: {_describe_failure(error.last_attempt)}")
            except NoAnswer as none:
                return none

    async def _attempt(self, client: httpx.AsyncClient, rate_limit: "_RateLimit", body: dict[str, Any]) -> str:
        """Send one request, and return the text of the answer.

        Raises:
            NoAnswer: The time limit passed, or the reply is no answer; another attempt would not help.
            _RetryLater: The status asks for another attempt.
            EngineGone: The server refuses the key, or does not know the address or the model.
        """
        await rate_limit.wait()
        try:
            # Limit the time of the attempt. The limit of httpx is per read, so a slow stream could run for ever.
            async with asyncio.timeout(self.settings.time_limit_s):
                status, headers, data = await _post(client, body)
        except TimeoutError:
            raise NoAnswer(f"no answer within {self.settings.time_limit_s:g} s") from None
        if status in _RETRY_STATUSES:
            raise _RetryLater(status, headers.get("retry-after", ""))
        if status in (401, 403, 404):
            raise EngineGone(
                f"caption.seen.endpoint {self.settings.endpoint}: status {status}; check caption.seen.model and the "
                f"key in {self.settings.key_variable}"
            )
        if status != 200:
            raise NoAnswer(f"status {status}: {data[:200].decode(errors='replace')}")
        return _answer_text(data)


class _Unreached(NoAnswer):
    """The reason why all attempts that the settings allow failed; the server may be gone."""


class _RetryLater(Exception):
    """A status that asks for another attempt; `wait_s` is the server's `Retry-After` in seconds, or None."""

    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__(f"status {status}")
        self.wait_s = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_S)


def _retry_wait_s(state: tenacity.RetryCallState) -> float:
    """Return the seconds to wait before the next attempt, at most 60.

    They are those of the server's `Retry-After`, else a random number below a limit that doubles with each attempt.
    """
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _RetryLater) and error.wait_s is not None:
        return min(error.wait_s, _MAX_WAIT_S)
    return _backoff(state)


def _describe_failure(state: Any) -> str:
    """Return the error of an attempt, given as tenacity's call state or as its future, as text."""
    outcome = getattr(state, "outcome", state)
    error = outcome.exception()
    return f"{type(error).__name__}: {error}".removeprefix("_RetryLater: ")


class _RateLimit:
    """A limit of requests per minute, which spaces the requests evenly; 0 is no limit."""

    def __init__(self, per_minute: float) -> None:
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._next = time.monotonic()

    async def wait(self) -> None:
        """Wait until the next request may be sent."""
        now = time.monotonic()
        at = max(now, self._next)
        self._next = at + self._interval_s
        if at > now:
            await asyncio.sleep(at - now)


def _api_key(settings: SeenSettings) -> str:
    """Return the endpoint's API key, "" if its environment variable is not set."""
    return os.environ.get(settings.key_variable, "")


def _client(settings: SeenSettings) -> httpx.AsyncClient:
    """Return an HTTP client with the endpoint's address, API key and time limit."""
    secret = _api_key(settings)
    return httpx.AsyncClient(
        base_url=settings.endpoint.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {secret}"} if secret else {},
        timeout=httpx.Timeout(settings.time_limit_s, connect=10.0),
        limits=httpx.Limits(max_connections=settings.concurrency),
    )


async def _post(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
    """Send a chat request. Return the reply's status, headers and body; raise NoAnswer if the body is too long."""
    async with client.stream("POST", "chat/completions", json=body) as reply:
        data = bytearray()
        async for part in reply.aiter_bytes():
            data += part
            if len(data) > _MAX_REPLY_BYTES:
                raise NoAnswer(f"a reply of more than {_MAX_REPLY_BYTES >> 20} MiB")
        return reply.status_code, reply.headers, bytes(data)


def _body(prompt: Prompt, settings: SeenSettings) -> dict[str, Any]:
    """Return the JSON body of the chat request for a prompt."""
    schema = {"name": prompt.answer.__name__.lower(), "strict": True, "schema": wire_schema(prompt.answer)}
    return {
        "model": settings.model,
        "messages": messages(prompt),
        "max_tokens": settings.max_tokens,
        "temperature": 0,
        "seed": 0,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Return a prompt as OpenAI chat messages: its pictures as data URLs, then the text."""
    pictures = [f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in prompt.pictures]
    shown = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": prompt.text}]}]


def _answer_text(reply: bytes) -> str:
    """Return the answer's text in a reply; raise NoAnswer if the reply does not follow the protocol."""
    try:
        choice = httpx.Response(200, content=reply).json()["choices"][0]
        return choice["message"].get("refusal") or choice["message"]["content"] or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise NoAnswer(f"the reply is no chat completion: {reply[:100].decode(errors='replace')}") from None


def probe(settings: SeenSettings) -> None:
    """Ask the server once which models it has, to check the settings.

    Raises:
        ValueError: The server cannot be reached, refuses, or lacks the model. The message names the setting.
    """
    secret = _api_key(settings)
    address = settings.endpoint.rstrip("/") + "/models"
    try:
        reply = httpx.get(address, headers={"Authorization": f"Bearer {secret}"} if secret else {}, timeout=10.0)
        reply.raise_for_status()
        names = [one["id"] for one in reply.json()["data"]]
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        fix = f"check the key in {settings.key_variable}" if status in (401, 403) else "check the address"
        raise ValueError(f"caption.seen.endpoint {settings.endpoint}: /models gave status {status}; {fix}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(
            f"caption.seen.endpoint {settings.endpoint}: no server answers there ({type(error).__name__}); start it or "
            "correct the address"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"caption.seen.endpoint {settings.endpoint}: /models does not answer as OpenAI's does; give the base URL "
            "that ends in /v1"
        ) from None
    if settings.model not in names:
        known = ", ".join(names[:5]) or "none"
        raise ValueError(f"caption.seen.model {settings.model!r}: the endpoint does not have it; it has {known}")
