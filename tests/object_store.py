"""Servers of object stores in processes of their own: S3 (moto) behind a proxy that fails as real ones do, and Google
Cloud Storage (gcp-storage-emulator) behind one that holds to conditions, which the emulator does not.
"""

import contextlib
import http.client
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an error</Message></Error>"


class Faults:
    """Which request fails, and how, picked by a seed.

    Attributes:
        rates: of each kind of fault, the share of requests that it befalls: "error" (500 before anything is done),
            "lost" (done, but the connection breaks before the answer), "slow" (the answer comes in drops), "hang"
            (no answer for `hang_s`; at most `hangs` times).
        met: how often each befell.
    """

    def __init__(self, rates: dict[str, float], seed: int = 0, hang_s: float = 30.0, hangs: int = 2) -> None:
        self.rates, self.hang_s, self.hangs = rates, hang_s, hangs
        self.met: Counter[str] = Counter()
        self._rng, self._lock = random.Random(seed), threading.Lock()

    def pick(self) -> str:
        with self._lock:
            at = self._rng.random()
            for name, rate in self.rates.items():
                if at < rate and not (name == "hang" and self.met["hang"] >= self.hangs):
                    self.met[name] += 1
                    return name
                at -= rate
            self.met["well"] += 1
            return ""


@dataclass(frozen=True)
class Server:
    """The environment that leads a process to the proxy, and a way past it."""

    environment: dict[str, str]
    port: int

    def count(self, prefix: str) -> int:
        """Objects of the bucket whose key begins so; asked without faults."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as one:
            one.request("GET", f"/sets?list-type=2&prefix={prefix}", headers={"Host": "127.0.0.1"})
            return one.getresponse().read().count(b"<Key>")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def s3_server(faults: Faults) -> Iterator[Server]:
    """A server with the bucket "sets"."""
    port = _free_port()
    command = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port, _handler(port, faults)) as proxy_port:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as one:
            one.request("PUT", "/sets", headers={"Host": "127.0.0.1"})
            assert one.getresponse().status == 200
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy_port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY")])),
        }
        yield Server(environment, port)


@contextmanager
def gs_server() -> Iterator[Server]:
    """A server of Google's kind with the bucket "sets"."""
    port = _free_port()
    command = ["-m", "gcp_storage_emulator", "start", "-H", "127.0.0.1", "--port", str(port)]
    with _running(
        [*command, "--in-memory", "--default-bucket", "sets"], port, _handler(port, Faults({}))
    ) as proxy_port:
        yield Server({"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{proxy_port}"}, port)


@contextmanager
def _running(command: list[str], port: int, handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """A server that listens on `port`, and a proxy before it; gives the proxy's port."""
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"{command[1]} did not start")
        yield proxy.server_address[1]
    finally:
        proxy.shutdown()
        server.kill()
        server.wait()


def _taken(port: int, path: str, body: bytes) -> bool:
    """Whether an upload that is to be made only where nothing is finds something there."""
    asked = urllib.parse.urlsplit(path)
    if "ifGenerationMatch=0" not in asked.query:
        return False
    (name,) = re.findall(rb'"name": "([^"]+)"', body)
    bucket = asked.path.split("/b/")[1].split("/")[0]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as one:
        one.request("GET", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}")
        return one.getresponse().status == 200


def _handler(port: int, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if _taken(port, self.path, body):
                self._answer(412, {"Content-Type": "application/json"}, b'{"error": {"code": 412}}')
                return
            fault = faults.pick()
            if fault == "error":
                self._answer(500, {"Content-Type": "application/xml"}, _ERROR)
                return
            if fault == "hang":
                time.sleep(faults.hang_s)
                self.close_connection = True
                return
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as behind:
                behind.request(self.command, self.path, body, dict(self.headers))
                answer = behind.getresponse()
                data, headers = answer.read(), dict(answer.getheaders())
            if fault == "lost":
                self.close_connection = True
                return
            self._answer(answer.status, headers, data, slow=fault == "slow")

        def _answer(self, status: int, headers: dict[str, str], data: bytes, slow: bool = False) -> None:
            self.send_response(status)
            length = headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command == "HEAD":
                return
            for start in range(0, len(data), max(1, len(data) // 5)) if slow else [0]:
                part = data[start : start + max(1, len(data) // 5)] if slow else data
                with contextlib.suppress(OSError):
                    self.wfile.write(part)
                if slow:
                    time.sleep(0.2)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
