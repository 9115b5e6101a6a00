"""A browser plays a clip from its in point to its out point, with every frame at its time."""

import base64
import json
import queue
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_prep.media.cut import cut
from data_prep.media.decode import INF, frame_times
from tests.data_prep.media.marked_media import noise_sound, numbered_frame, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FPS, START, END = 25, 37, 90

# Play the clip to its end, then seek to several times; read the number from the bars of each picture.
PAGE = """<!doctype html><video id=v muted src="data:video/%s;base64,%s"></video><script>
const video = document.getElementById('v'), times = %s, seen = [];
const tell = (found) => fetch('/', {method: 'POST', body: JSON.stringify(found)});
const canvas = document.createElement('canvas'), pen = canvas.getContext('2d');
canvas.width = 128; canvas.height = 64;
function number() {
  pen.drawImage(video, 0, 0, 128, 64);
  let found = 0;
  for (let bit = 0; bit < 8; bit++) found |= (pen.getImageData(bit * 16 + 8, 32, 1, 1).data[0] > 128) << bit;
  return found;
}
video.onerror = () => tell({error: video.error.message});
video.requestVideoFrameCallback(() => seen.push(number()));
video.onended = () => { seen.push(number()); next(); };
video.play();
function next() {
  if (!times.length) return tell({duration: video.duration, seen});
  video.onseeked = () => { seen.push(number()); next(); };
  video.currentTime = times.shift();
}
</script>"""


def _played(folder, media: bytes, kind: str, times: list[float]) -> dict:
    page = (PAGE % (kind, base64.b64encode(media).decode(), json.dumps(times))).encode()
    reports: queue.Queue[dict] = queue.Queue()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page if self.path == "/" else b"")

        def do_POST(self):
            reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format, *args):  # keep the server's log out of the test's output
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        flags += [f"--user-data-dir={folder}/profile", f"http://127.0.0.1:{server.server_port}/"]
        browser = subprocess.Popen([str(CHROMIUM), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return reports.get(timeout=60)
        finally:
            browser.terminate()
            browser.wait(20)
            server.shutdown()


@pytest.fixture(scope="module", params=["mp4", "ts", "mkv", "webm"])
def clip(request, tmp_path_factory):
    name, codecs = f"a.{request.param}", ("libvpx", "libopus") if request.param == "webm" else ("libx264", "aac")
    path = tmp_path_factory.mktemp("source") / name
    write(path, [numbered_frame(k) for k in range(150)], noise_sound(6.0, 48000), codecs=codecs, fps=FPS, gop=40)
    times = frame_times(path, 0.0, INF)
    return cut(path, times[START], times[END])


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_plays_from_the_in_point(clip, tmp_path):
    offsets = [0, 1, 13, 30, 52]
    # Matroska has no edit list: a player starts at the key frame before, and the in point is stored beside the file.
    times = [clip.in_s + (offset + 0.5) / FPS for offset in offsets]
    kind = {"mp4": "mp4", "mkv": "webm"}[clip.suffix]
    report = _played(tmp_path, clip.data, kind, times)
    assert "error" not in report
    first, last, *seen = report["seen"]
    assert last == END - 1
    assert seen == [START + offset for offset in offsets]
    if clip.suffix == "mp4":
        assert first == START
        assert report["duration"] == pytest.approx((END - START) / FPS, abs=0.001)
    else:
        assert first == round(START - clip.in_s * FPS)
