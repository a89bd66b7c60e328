"""The daemon leaves out the parts of libraries that it does not use."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

#: Import everything that a running daemon may import.
EVERYTHING = """
import pkgutil
import fluxbudgetd.cli
import dbus_fast.aio
for module in pkgutil.walk_packages(fluxbudgetd.__path__, "fluxbudgetd."):
    if not module.name.endswith(".__main__"):
        __import__(module.name)
"""


def output(script: str) -> str:
    """Run a script in a process of its own; return what it prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.skipif(find_spec("_md5") is None, reason="this Python has only OpenSSL's hash functions")
def test_daemon_loads_neither_rich_nor_openssl() -> None:
    assert (
        output(f"{EVERYTHING}\nimport sys\nprint({{'rich', 'ssl', '_ssl', '_hashlib'}} & sys.modules.keys())")
        == "set()"
    )


def test_hash_functions_and_random_ids_work_without_openssl() -> None:
    script = """
import fluxbudgetd.lean, hashlib, secrets
print(hashlib.blake2b(b"", digest_size=8).hexdigest(), hashlib.sha256(b"").hexdigest()[:8], len(secrets.token_hex(8)))
"""
    assert output(script) == "e4a6a0577479b2b4 e3b0c442 16"


def test_library_that_uses_tls_gets_the_real_module() -> None:
    script = """
import fluxbudgetd.lean, anyio.streams.tls, sys
assert "ssl" not in sys.modules
context = anyio.streams.tls.ssl.create_default_context()
import ssl
print(type(context) is ssl.SSLContext, "ssl" in sys.modules)
"""
    assert output(script) == "True True"


def test_loaded_modules_stay_as_they_are() -> None:
    script = """
import anyio, asyncio, hashlib, ssl
import fluxbudgetd.lean, sys
print(sys.modules["ssl"] is ssl, asyncio.sslproto.ssl is ssl, "_hashlib" in sys.modules, anyio.connect_tcp.__module__)
"""
    assert output(script) == "True True True anyio"
