"""A real headless Chromium for tests, spoken to by its debugging protocol over two pipes."""

import contextlib
import json
import os
import shutil
import subprocess
import time

COMMAND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab: `requests` are the addresses it asked for."""

    def __init__(self, process, commands, events):
        self._process, self._commands, self._events = process, commands, events
        self._session, self._number, self.requests = {}, 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.call("Network.enable")
        self.call("Page.enable")

    def call(self, method, **parameters):
        """The result of a method of the protocol."""
        self._number += 1
        self._commands.write(json.dumps({"id": self._number, "method": method, "params": parameters} | self._session).encode() + b"\0")
        self._commands.flush()
        while (message := self._read()).get("id") != self._number:
            pass
        assert "error" not in message, message["error"]
        return message["result"]

    def _read(self):
        text = b""
        while not text.endswith(b"\0"):
            text += self._events.read(1) or b"{}\0"
        message = json.loads(text[:-1])
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def open(self, address, *, width=1300, height=900, dark=False):
        """Go to an address with a window of this size, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.requests.clear()
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def eval(self, script):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script, seconds=60):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.eval(script):
            assert time.monotonic() < end, f"{script} never came true"
            time.sleep(0.1)

    def click(self, script):
        """A click of the mouse in the middle of the element that an expression gives."""
        x, y = self.eval(f"(() => {{ const e = {script}; e.scrollIntoView({{block: 'center', inline: 'center'}}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextlib.contextmanager
def browser(profile):
    """A page of a browser of its own, which ends with it."""
    (to_browser, commands), (events, from_browser) = os.pipe(), os.pipe()

    def take_pipes():  # The browser reads from descriptor 3 and writes to 4.
        for source, place in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
            os.dup2(source, place)

    words = [COMMAND, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    process = subprocess.Popen(words, preexec_fn=take_pipes, close_fds=False, stderr=subprocess.DEVNULL)
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(commands, "wb") as commands, os.fdopen(events, "rb") as events:
            yield Page(process, commands, events)
    finally:
        process.kill()
        process.wait()
