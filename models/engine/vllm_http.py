"""Requests to vLLM servers over HTTP: tokens as they are drawn, and weights and adapters from a folder.

The paths are those of vLLM 0.32: `/inference/v1/generate` streams tokens and their log-probabilities for token ids, and
the rest is vLLM's development mode, made for reinforcement learning.
"""

import asyncio
import json
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx2

from ...arrays import IntArray
from .vllm_decoder import Drawn

T = TypeVar("T")

CONNECT_SECONDS = 10.0
"""Seconds after which a server counts as out of reach. [choice]"""
REPLY_SECONDS = 60.0
"""Seconds that servers may take to say how they are. [choice]"""
HAND_OVER_SECONDS = 1800.0
"""Seconds that servers may take to read weights. [choice]"""
SILENT_SECONDS = 20.0
"""Seconds without a token from any server after which all are asked whether they are alive. [choice]"""
STALLED_SECONDS = 1800.0
"""Seconds without a token from any server after which a rollout fails. [choice]"""
ADAPTER = "tokengym-"
"""Beginning of the names of adapters."""
_NO_LOGPROB = -9999.0  # what servers write in place of -inf and nan


class Servers:
    """Connections to servers, on an event loop in a thread of its own.

    Args:
        urls: Addresses of the servers.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls
        self.load = Counter[str]()
        """Requests that each server has."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vLLM servers", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        # Proxies are for the world outside. A token may take long; whether servers live is asked apart.
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Runs a coroutine on the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Ends all connections."""
        self.start(self._client.aclose()).result()

    def ask(self, url: str, method: str, path: str, body: Any = None) -> Any:
        """The reply of a server.

        Raises:
            RefusedError: The server refuses to do that.
            ConnectionError: The server cannot be reached.
        """
        return self.start(self._ask(url, method, path, REPLY_SECONDS, body)).result()

    def each(self, path: str) -> list[Any]:
        """What all servers reply to a GET request."""

        async def ask() -> list[Any]:
            return await asyncio.gather(*(self._ask(url, "GET", path, REPLY_SECONDS) for url in self.urls))

        return self.start(ask()).result()

    def versions(self) -> list[str]:
        """The version of each server's weights."""
        return [reply["weight_version"] for reply in self.each("/weight_info")]

    def wait_for(self, version: str, adapter: str | None) -> None:
        """Waits until another process has handed over weights and adapters.

        Raises:
            TimeoutError: It takes too long.
        """
        deadline = time.monotonic() + HAND_OVER_SECONDS
        while time.monotonic() < deadline:
            known = [{model["id"] for model in reply["data"]} for reply in self.each("/v1/models")]
            if set(self.versions()) == {version} and all(adapter is None or adapter in names for names in known):
                return
            time.sleep(0.1)
        raise TimeoutError(
            f"the vLLM servers {', '.join(self.urls)} have not been given the weights of this process: another process "
            "failed, or trains other weights"
        )

    def load_weights(self, urls: Sequence[str], folder: str, version: str) -> None:
        """Makes servers read weights from a folder, and drop what the old ones have computed.

        Raises:
            RefusedError: A server cannot read the folder, or the weights are of another model.
            ConnectionError: A server cannot be reached.
        """

        async def load(url: str) -> None:
            # It ends requests, too, that a killed process may have left.
            await self._ask(url, "POST", "/pause?mode=abort", HAND_OVER_SECONDS)
            try:
                body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
                await self._ask(url, "POST", "/collective_rpc", HAND_OVER_SECONDS, body)
                emptied = await self._ask(url, "POST", "/reset_prefix_cache", HAND_OVER_SECONDS)
                if not emptied["success"]:
                    raise RefusedError(url, 200, "what old weights have computed is still in use")
                await self._ask(url, "POST", "/update_weight_version", HAND_OVER_SECONDS, {"new_version": version})
            finally:
                await self._ask(url, "POST", "/resume", HAND_OVER_SECONDS)

        self._all(load(url) for url in urls)

    def load_adapter(self, name: str, folder: str) -> None:
        """Makes all servers read adapters from a folder, in place of those that they have.

        Raises:
            RefusedError: A server cannot read the folder.
            ConnectionError: A server cannot be reached.
        """

        async def load(url: str) -> None:
            reply = await self._ask(url, "GET", "/v1/models", HAND_OVER_SECONDS)
            known = {model["id"] for model in reply["data"]}
            for before in known - {name}:
                if before.startswith(ADAPTER):
                    await self._ask(url, "POST", "/v1/unload_lora_adapter", HAND_OVER_SECONDS, {"lora_name": before})
            if name not in known:
                body = {"lora_name": name, "lora_path": folder}
                await self._ask(url, "POST", "/v1/load_lora_adapter", HAND_OVER_SECONDS, body)

        self._all(load(url) for url in self.urls)

    def check_alive(self) -> None:
        """Raises `ConnectionError` unless all servers answer."""
        self.each("/health")

    async def stream(self, url: str, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        """What a server streams in reply to a request for tokens.

        Raises:
            ConnectionError: The server cannot be reached, ends in the middle, or says that it failed.
        """
        try:
            async with self._client.stream("POST", f"{url}/inference/v1/generate", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise RefusedError(url, response.status_code, _message(response))
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            raise ConnectionError(f"the vLLM server {url} failed: {event['error']['message']}")
                        yield event
            raise ConnectionError(f"the vLLM server {url} ended in the middle of a reply")
        except httpx2.HTTPError as error:
            raise _out_of_reach(url, error) from error

    def _all(self, coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            results = await asyncio.gather(*coroutines, return_exceptions=True)  # so that none is left under way
            for result in results:
                if isinstance(result, BaseException):
                    raise result

        self.start(run()).result()

    async def _ask(self, url: str, method: str, path: str, seconds: float, body: Any = None) -> Any:
        try:
            limit = httpx2.Timeout(seconds, connect=CONNECT_SECONDS)
            response = await self._client.request(method, url + path, json=body, timeout=limit)
        except httpx2.HTTPError as error:
            raise _out_of_reach(url, error) from error
        if response.status_code != 200:
            raise RefusedError(url, response.status_code, _message(response))
        return response.json() if response.headers.get("content-type", "").startswith("application/json") else None


class RefusedError(ConnectionError):
    """A server refuses what it is asked.

    Args:
        url: Address of the server.
        status: HTTP status of its reply.
        message: Reason that the server gives.
    """

    def __init__(self, url: str, status: int, message: str) -> None:
        super().__init__(f"the vLLM server {url} refuses: {message}")
        self.url, self.status, self.message = url, status, message


def _message(response: httpx2.Response) -> str:
    """The server's own words in an error."""
    try:
        found = response.json()
    except ValueError:
        return f"status {response.status_code}"
    error = found.get("error", found) if isinstance(found, dict) else found
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _out_of_reach(url: str, error: Exception) -> ConnectionError:
    return ConnectionError(f"the vLLM server {url} does not answer: {str(error) or type(error).__name__}")


class ServerRequests:
    """Requests to servers, each to the one that has the fewest.

    Args:
        servers: Servers.
        version: Version of the weights that they have.
        adapter: Name of the adapters for all requests.
    """

    def __init__(self, servers: Servers, version: str, adapter: str | None) -> None:
        self._servers, self._version, self._adapter = servers, version, adapter
        self._running: dict[str, tuple[str, Future[None]]] = {}  # by name: server, and what reads the reply
        self._arrived: queue.SimpleQueue[Drawn | tuple[str, Exception]] = queue.SimpleQueue()

    def add(self, name: str, sequence: IntArray, settings: Mapping[str, Any], server: str | None = None) -> None:
        """Makes a request to a server; by default to the one that has the fewest."""
        body: dict[str, Any] = {
            "token_ids": sequence.tolist(),
            # The tokens that end an attempt are the environment's, and no others.
            "sampling_params": {**settings, "ignore_eos": True},
            "stream": True,
        }
        if self._adapter is not None:
            body["model"] = self._adapter
        url = server or min(self._servers.urls, key=self._servers.load.__getitem__)
        self._servers.load[url] += 1
        self._running[name] = url, self._servers.start(self._read(name, url, body, len(sequence)))

    def abort(self, names: Sequence[str]) -> None:
        for name in names:
            url, reading = self._running.pop(name)
            reading.cancel()  # which closes the connection, and the server ends the request
            self._servers.load[url] -= 1

    def step(self) -> list[Drawn]:
        """What was drawn, of one request or more; it waits for that.

        Raises:
            ConnectionError: A server cannot be reached, has ended, or failed.
            ValueError: All requests have ended, and the environment goes on.
        """
        items = [self._first()]
        while not self._arrived.empty():
            items.append(self._arrived.get())
        for item in items:
            if not isinstance(item, Drawn) and item[0] in self._running:
                raise item[1]
        return [item for item in items if isinstance(item, Drawn)]

    def _first(self) -> Drawn | tuple[str, Exception]:
        deadline = time.monotonic() + STALLED_SECONDS
        while time.monotonic() < deadline:
            over = all(reading.done() for _, reading in self._running.values())
            try:
                return self._arrived.get(block=not over, timeout=SILENT_SECONDS)
            except queue.Empty:
                if over:
                    raise ValueError("vLLM servers ended attempts that the environment goes on with") from None
                self._servers.check_alive()
        servers = ", ".join(self._servers.urls)
        raise ConnectionError(f"the vLLM servers {servers} have drawn no token for {STALLED_SECONDS:.0f} seconds")

    async def _read(self, name: str, url: str, body: Mapping[str, Any], computed: int) -> None:
        """Reads a reply to its end. Servers do not say which prompt tokens they had: all count as computed."""
        try:
            async for event in self._servers.stream(url, body):
                for choice in event["choices"]:
                    if choice["finish_reason"] not in (None, "stop", "length"):
                        raise ConnectionError(f"the vLLM server {url} ended a request: {choice['finish_reason']}")
                    versions = {span["version"] for span in choice["weight_versions"] or ()}
                    if versions - {self._version}:
                        raise ConnectionError(
                            f"the weights of the vLLM server {url} changed during a rollout: another run uses it, too"
                        )
                    content = choice["logprobs"]["content"] if choice["logprobs"] else ()
                    tokens, logprobs = choice["token_ids"], [one["logprob"] for one in content]
                    if len(logprobs) != len(tokens) or min(logprobs, default=0.0) <= _NO_LOGPROB:
                        raise ConnectionError(f"the vLLM server {url} draws tokens whose log-probability is nan")
                    self._arrived.put(Drawn(name, tokens, logprobs, computed))
                    computed = 0
        except Exception as error:  # whatever it is, the rollout waits for it
            self._arrived.put((name, error))
