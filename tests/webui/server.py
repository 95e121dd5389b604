"""A real WebUI in a process of its own, with models, settings and extensions in a folder of the test's."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

REPO = Path(__file__).parents[2]
LEFT_OUT = ("tests", "bench", "docs", "miniature")
START_SECONDS = 300
PRECISION = os.environ.get("WEBUI_PRECISION") or "full"
"""`half` starts the WebUI as users have it, everything in fp16; it wants a torch that multiplies that on a CPU. `card`
starts it on the computer's graphics card, as users do."""
FLAGS = {
    "full": ["--use-cpu", "all", "--no-half"],
    "half": ["--use-cpu", "all", "--precision", "half", "--skip-python-version-check"],
    "card": ["--skip-python-version-check"],
}
MORE_FLAGS = shlex.split(os.environ.get("WEBUI_FLAGS") or "")
"""What the WebUI is started with besides, as `--medvram`."""
PROMPT = "red circle"
SETTINGS = {
    "samples_save": False, "grid_save": False, "show_progress_type": "Approx cheap",
    "token_merging_ratio": 0.0, "use_downcasted_alpha_bar": False, "sd_noise_schedule": "Default",
    "randn_source": "CPU", "fp8_storage": "Disable",
}  # fmt: skip
"""The WebUI takes back what a request overrides only of settings that were set before. The standalone host draws its
noise on the CPU."""
Picture = npt.NDArray[np.uint8]
Values = Callable[..., dict[str, Any]]
"""Makes the values of a small job under a new name; changes are `section__field=value`."""
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ProbeError(AssertionError):
    """A function inside the WebUI raised; the message is its trace."""


class Webui:
    """Started by `start`, always ended by `stop`. `data` is its --data-dir, `log` what it printed."""

    def __init__(self, home: Path, data: Path) -> None:
        self.home, self.data, self.log = home, data, data / "webui.log"
        self.models = data / "models" / "Stable-diffusion"
        self.loras = data / "models" / "Lora"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def prepare(self) -> None:
        """The extension as a clone would bring it, and the probe."""
        install_extension(self.data / "extensions" / "webui-trainer")
        # scripts load in the order of these names, and the probe imports the trainer's package
        shutil.copytree(Path(__file__).parent / "probe_extension", self.data / "extensions" / "zz-webui-probe")
        self.models.mkdir(parents=True, exist_ok=True)
        self.loras.mkdir(parents=True, exist_ok=True)

    def start(self, checkpoint: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [
            str(self.home / "venv" / "bin" / "python"), "launch.py", "--skip-torch-cuda-test",
            *FLAGS[PRECISION], *MORE_FLAGS, "--api", "--port", str(port), "--do-not-download-clip",
            "--no-download-sd-model", "--skip-version-check", "--data-dir", str(self.data), "--ckpt", str(checkpoint),
            "--disable-console-progressbars",
        ]  # fmt: skip
        foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if name not in foreign}
        environment = kept | {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
            "GRADIO_ANALYTICS_ENABLED": "False", "SD_WEBUI_RESTARTING": "1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self.home, env=environment, stdout=log, stderr=log)
        self.until(lambda: self.starts() > 0, "the WebUI's start", START_SECONDS)
        self.until(lambda: self.probe("facts")["loaded"], "the checkpoint", 60)
        self.post("/sdapi/v1/options", SETTINGS)

    def starts(self) -> int:
        """How often the pages were built and served. A request that comes earlier makes the WebUI's start fail: it adds
        its middleware after the server has begun to answer."""
        return self.log.read_bytes().count(b"\nStartup time:")

    def load(self, checkpoint: str) -> None:
        """Choose another checkpoint in the menu, by its file's name."""
        known = [Path(one["filename"]).name for one in self.get("/sdapi/v1/sd-models")]
        if checkpoint not in known:  # it sets the choice back to that of --ckpt, which could not be chosen then
            self.post("/sdapi/v1/refresh-checkpoints", {})
        self.post("/sdapi/v1/options", {"sd_model_checkpoint": checkpoint})
        self.until(lambda: self.probe("facts").get("checkpoint") == checkpoint, f"{checkpoint} loaded")

    def reload(self) -> None:
        """Press "Reload UI" and wait for the new page."""
        before = self.starts()
        self.probe("restart")
        self.until(lambda: self.starts() > before, "the page after Reload UI", START_SECONDS)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """What `condition` answers once it is something; an answer that does not come counts as nothing."""
        deadline, reason = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"The WebUI ended by itself while {what} was waited for.")
            try:
                if found := condition():
                    return found
            except (OSError, ValueError, ProbeError) as error:
                reason = f" ({error})"
            time.sleep(0.1)
        raise AssertionError(f"{what} did not come within {seconds:.0f} s{reason}.")

    def get(self, path: str) -> Any:
        with _direct.open(self.address + path, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def post(self, path: str, body: dict[str, Any], timeout: float = 300) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _direct.open(request, timeout=timeout) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                raise ProbeError(f"{path}: {error.code} {error.read().decode(errors='replace')[:2000]}") from None

    def probe(self, function: str, /, **arguments: Any) -> Any:
        """Call a function of probe_extension/webui_probe inside the WebUI."""
        answer = self.post(f"/probe/{function}", arguments)
        if "error" in answer:
            raise ProbeError(answer["error"])
        return answer["result"]

    def txt2img(self, prompt: str = PROMPT, **changes: Any) -> Picture:
        """(64, 64, 3) pixels, by the API."""
        body = {
            "prompt": prompt,
            "seed": 7,
            "steps": 4,
            "width": 64,
            "height": 64,
            "sampler_name": "DDIM",
            "scheduler": "Automatic",
            "cfg_scale": 7,
        }
        answer = self.post("/sdapi/v1/txt2img", body | changes)
        with Image.open(BytesIO(base64.b64decode(answer["images"][0]))) as image:
            return np.asarray(image.convert("RGB"))

    def tail(self, since: int = 0, lines: int = 60) -> str:
        """The last lines of the log, from the byte `since` on."""
        if not self.log.exists():
            return ""
        text = self.log.read_bytes()[since:].decode(errors="replace")
        told = [line for line in text.splitlines() if "it/s]" not in line and "?it" not in line and line]
        return "\n".join(told[-lines:])


def install_extension(folder: Path) -> None:
    """Copy what git has or would take of this repository, without what only developers need."""
    for name in _names():
        source = REPO / name
        if name and source.is_file() and name.split("/")[0] not in LEFT_OUT:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _names() -> list[str]:
    """Of the repository's files; where there is no git, of an unpacked archive's."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPO, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        top = [one for one in REPO.iterdir() if one.name[0] != "." and one.name not in LEFT_OUT]
        files = [file for one in top for file in (one, *one.rglob("*")) if "__pycache__" not in file.parts]
        return [file.relative_to(REPO).as_posix() for file in files]
    return listed.stdout.decode().split("\0")


def take_pristine(webui: Webui) -> None:
    """Snapshot the host as it is in use: the first picture with token merging leaves attributes on a new model."""
    webui.txt2img(override_settings={"token_merging_ratio": 0.5})
    webui.txt2img()
    webui.probe("take_snapshot", label="pristine")


def model_hash(path: str) -> str:
    """SHA-256 of a LoRA file's tensors."""
    import safetensors

    with safetensors.safe_open(path, framework="np") as file:
        return str((file.metadata() or {})["sshs_model_hash"])


def wait_for_step(webui: Webui, step: int) -> dict[str, Any]:
    """The run's view once it has done that many steps."""
    return webui.until(lambda: (seen := webui.probe("view"))["step"] >= step and seen, f"step {step}")  # type: ignore[no-any-return]


def wait_until_ended(webui: Webui, seconds: float = 60) -> dict[str, Any]:
    ended: dict[str, Any] = webui.probe("wait", timeout=seconds)  # says nothing where nothing has run
    assert not ended.get("running"), f"still running after {seconds:.0f} s: {ended}"
    return ended
