"""What a newcomer sees when a command cannot do its work: one line that says what to do, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from naru import api_key

SERVICES = {"NARU_AUTHSVC_ADDRESS": "127.0.0.1:1", "NARU_ACCOUNTING_ADDRESS": "127.0.0.1:1"}


def naru(folder: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder where Naru was never started."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "naru", *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "said"),
    [
        (["usage"], {}, 2, "Set NARU_ACCOUNTING_ADDRESS"),
        (["keys", "list"], {}, 2, "Set NARU_AUTHSVC_ADDRESS"),
        (["keys", "list"], SERVICES, 2, "Set OPENAI_API_KEY"),
        (["keys", "list"], {**SERVICES, "OPENAI_API_KEY": "sk-proj-0123"}, 2, "holds no key of Naru"),
        (["keys", "list"], {**SERVICES, "OPENAI_API_KEY": "sk-na\u00efve"}, 2, "holds no key of Naru"),
        (["usage"], {**SERVICES, "OPENAI_API_KEY": api_key.generate(os.urandom) + "\n"}, 1, "is not available"),
        (["bootstrap"], SERVICES, 2, "there is no file service-token-operator"),
        (["keys", "create", "--expires-in", "5x"], {}, 2, "such as 30m"),
        (["keys", "rotate", "x7Gq01abcdEF", "--grace", "soon"], {}, 2, "such as 30m"),
        (["keys", "update", "x7Gq01abcdEF"], {}, 2, "say what to change"),
        (["db", "upgrade", "edge"], {}, 2, "edge is none of authsvc, accounting"),
        (["db", "upgrade", "authsvc"], {"NARU_AUTHSVC_DATABASE_URL": "mysql://x"}, 2, "NARU_AUTHSVC_DATABASE_URL"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    tmp_path: Path, arguments: list[str], environ: dict[str, str], code: int, said: str
) -> None:
    """Where the services are, whose key it is, what an option takes; never the key itself."""
    done = naru(tmp_path, environ, *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if "OPENAI_API_KEY" in environ:
        assert environ["OPENAI_API_KEY"].strip() not in done.stderr


def test_a_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """`naru db upgrade` makes the schema of the service that it names, and finds nothing to do the next time."""
    environ = {"NARU_AUTHSVC_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/auth.db"}
    for _ in range(2):
        done = naru(tmp_path, environ, "db", "upgrade", "authsvc")
        assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
        assert "The database of authsvc is up to date." in done.stdout
    assert (tmp_path / "auth.db").exists()
