"""An HTTP server on loopback that serves a folder, and spoils answers as it is told to."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ShardServer:
    """``faults[name]`` is a fault, or a list that requests use up (``"*"``: of any file); ``asked`` lists requests."""

    def __init__(self, folder):
        self.folder, self.faults, self.asked = folder, {}, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/site/shards"

    def fault(self, name):
        for key in (name, "*"):
            if self.faults.get(key):
                waiting = self.faults[key]
                return waiting.pop(0) if isinstance(waiting, list) else waiting
        return None

    def answer(self, request):
        name = request.path.rpartition("/")[2]
        self.asked.append(name)
        path, fault = self.folder / name, self.fault(name)
        if isinstance(fault, int) or not path.is_file():
            request.send_error(fault or 404)
            return
        body = b"<html>Please log in</html>" if fault == "html" else path.read_bytes()
        length = len(body)
        if fault == "byte":
            body = body[: length // 2] + bytes([body[length // 2] ^ 1]) + body[length // 2 + 1 :]
        if fault == "long":
            body, length = body + bytes(100_000), length + 100_000
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        try:
            if fault in ("cut", "stall", "drip"):
                request.wfile.write(body[: length // 2])
                request.wfile.flush()
            if fault == "stall":
                time.sleep(5)
            elif fault == "drip":
                for byte in body[length // 2 :]:
                    request.wfile.write(bytes([byte]))
                    request.wfile.flush()
                    time.sleep(0.05)
            elif fault != "cut":
                request.wfile.write(body)
        except OSError:
            pass  # the client had enough
        request.close_connection = True


@contextmanager
def serving(folder):
    server = ShardServer(folder)
    thread = threading.Thread(target=lambda: server._http.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._http.shutdown()
        server._http.server_close()
