"""A page in a headless Chromium, driven over its debugging pipe: no driver, no socket, no package."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Chromium reads its commands from descriptor 3 and answers on 4.
_LAUNCH = """
import os, sys
read, write, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
read, write = os.dup(read), os.dup(write)
os.dup2(os.dup(read), 3), os.dup2(os.dup(write), 4)
os.execvp(command[0], command)
"""
_KEYS = {" ": ("Space", 32), "ArrowUp": ("ArrowUp", 38), "ArrowDown": ("ArrowDown", 40), "ArrowLeft": ("ArrowLeft", 37),
         "ArrowRight": ("ArrowRight", 39), "PageUp": ("PageUp", 33), "PageDown": ("PageDown", 34), "Home": ("Home", 36),
         "End": ("End", 35), "Tab": ("Tab", 9), "Enter": ("Enter", 13), "Escape": ("Escape", 27)}  # fmt: skip
SHIFT = 8


class BrowserPage:
    """One page: ``evaluate`` expressions, send input as a reader would, collect requests and complaints."""

    def __init__(self, chromium, profile: Path, *, width=1280, height=900, touch=False, media=None):
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
                 "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _LAUNCH, str(commands), str(answers), chromium, *flags],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._buffer, self._count, self._session = b"", 0, None
        self.requests, self.complaints, self._loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height, touch)
        for name, value in (media or {}).items():
            self.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value}])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._out)
        try:
            self._process.wait(10)  # it ends with its pipe
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self):
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(parameters["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        return message

    def resize(self, width, height, touch=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def open(self, url):
        self._loaded = False
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._receive()

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=15):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never true: {expression}; {self.complaints}"
            time.sleep(0.02)

    def settle(self):
        """Wait until what was sent has been drawn."""
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
        )

    def key(self, key, modifiers=0):
        code, number = _KEYS.get(key) or (f"Key{key.upper()}", ord(key.upper()))
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)
        self.settle()

    def mouse(self, kind, x, y, button="none", **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, **more)

    def click(self, x, y):
        self.mouse("mousePressed", x, y, "left", clickCount=1)
        self.mouse("mouseReleased", x, y, "left", clickCount=1)
        self.settle()

    def drag(self, start, end, button="left", modifiers=0):
        held = {"left": 1, "right": 2}[button]
        self.mouse("mousePressed", *start, button, clickCount=1, modifiers=modifiers)
        self.mouse("mouseMoved", *end, button, buttons=held, modifiers=modifiers)
        self.mouse("mouseReleased", *end, button, clickCount=1, modifiers=modifiers)
        self.settle()

    def wheel(self, x, y, down):
        self.mouse("mouseWheel", x, y, deltaX=0, deltaY=down)
        self.settle()

    def swipe(self, start, end, steps=6):
        def points(at):
            return [{"x": start[0] + (end[0] - start[0]) * at, "y": start[1] + (end[1] - start[1]) * at}]

        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points(0))
        for step in range(1, steps + 1):
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=points(step / steps))
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
