"""A server that speaks OpenAI's chat completions, in a process of its own, and fails as real ones do.

Its "model" tells the colour of the pictures that it is shown. `python -m tests.chat_server PLAN` prints its port; PLAN
is JSON: faults: a list gone through by request, over and over ("" is none); colours: {colour: fault} that befalls every
request with such pictures; seen: fields laid over the answer; obey: a text that, found in the prompt, is obeyed.
"""

import base64
import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

MODEL = "colours-of-pictures"
NAMES = {"red": (200, 40, 30), "green": (40, 160, 50), "blue": (30, 60, 210), "white": (240, 240, 240)}
SUBJECT = {"name": "a woman", "appearance": ["a long coat"], "frames": [1]}
ACTION = {"what": "a woman opens a door", "frames": [1]}


@dataclass(frozen=True)
class Chat:
    """A running server."""

    endpoint: str

    def met(self) -> Counter[str]:
        """Requests so far: "" those answered well, and each fault by its name."""
        with urllib.request.urlopen(f"{self.endpoint}/met") as reply:
            return Counter(json.load(reply))


@contextmanager
def chat_server(**plan: Any) -> Iterator[Chat]:
    """A server with this plan, which ends with the block."""
    command = [sys.executable, "-m", "tests.chat_server", json.dumps(plan)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Chat(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
    finally:
        process.kill()
        process.communicate()


class _Plan:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.faults, self.colours = plan.get("faults", [""]), plan.get("colours", {})
        self.over, self.obey = plan.get("seen", {}), plan.get("obey", "")
        self.met: Counter[str] = Counter()
        self._count, self._lock = 0, threading.Lock()

    def pick(self, colour: str) -> str:
        with self._lock:
            fault = self.colours.get(colour, "")
            if not fault:
                fault = self.faults[self._count % len(self.faults)]
                self._count += 1
            self.met[fault] += 1
            return fault


def _colour(prompt: list[dict[str, Any]]) -> str:
    files = [part["image_url"]["url"].partition(",")[2] for part in prompt if part["type"] == "image_url"]
    if not files:
        return ""
    picture = Image.open(io.BytesIO(base64.b64decode(files[0])))
    mean = np.asarray(picture).reshape(-1, 3).mean(0)
    return min(NAMES, key=lambda name: float(np.abs(mean - NAMES[name]).sum()))


def _answer(plan: _Plan, fault: str, colour: str, text: str) -> str:
    seen = {
        **{"setting": f"a {colour} room", "subjects": [SUBJECT], "actions": [ACTION]},
        **{"camera": "unclear", "text_on_screen": []},
        **plan.over,
    }
    if "\nBEGIN DATA-" in text:
        facts = json.loads(text.partition("\nBEGIN DATA-")[2].partition("\n")[2].partition("\nEND DATA-")[0])["facts"]
        if plan.obey and any(plan.obey in fact for fact in facts):
            facts = [*facts, "The camera pans right.", "The sound of a dog barking is heard.", "It is a happy day."]
        whole = " ".join(facts)
        answer = json.dumps({"short": facts[0], "medium": whole, "long": whole})
    else:
        answer = json.dumps(seen)
    return {
        "malformed": answer[:-20],
        "empty": "",
        "refusal": "I'm sorry, but I can't help with that.",
        "long": "the " * 10_000,
        "language": json.dumps({**seen, "setting": "ein Zimmer mit einer Tür", "subjects": [], "actions": []}),
        "task": json.dumps({"poem": "roses are red"}),
        "extra": json.dumps({**seen, "note": "as you asked"}),
    }.get(fault, answer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plan: _Plan

    def do_GET(self) -> None:
        found = {"/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]}}
        found["/v1/met"] = dict(self.plan.met)
        self._reply(200 if self.path in found else 404, found.get(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        colour, text = _colour(prompt), prompt[-1]["text"]
        fault = self.plan.pick(colour)
        if fault == "dropped":
            self.close_connection = True
            return
        if fault in ("429", "500", "503"):
            self._reply(int(fault), {"error": {"message": "busy"}}, {"Retry-After": "0.2"} if fault == "429" else {})
            return
        if fault == "drips":  # alive at every moment, and never done
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(100):
                time.sleep(0.1)
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return
            return
        time.sleep({"hangs": 8.0, "slow": 0.3}.get(fault, 0.0))
        assert body["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
        message = {"role": "assistant", "content": _answer(self.plan, fault, colour, text)}
        self._reply(200, {"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def _reply(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        try:
            self.send_response(status)
            for name, value in {
                **{"Content-Type": "application/json", "Content-Length": str(len(body))},
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has given up
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    _Handler.plan = _Plan(json.loads(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
