"""The configuration template, `config/fluxbudget.toml`: every key at its default."""

import os

from fluxbudgetd.errors import FluxError

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
#: In a wheel; in a source tree, which an editable install uses.
_PLACES = (_PACKAGE, os.path.join(_PACKAGE, "..", "..", "..", "config"))


def template() -> str:
    """Return the template's text. Raises `FluxError` if the installation lacks it."""
    for place in _PLACES:
        try:
            with open(os.path.join(place, "fluxbudget.toml"), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise FluxError(f"{exc.filename}: {exc.strerror}", "install fluxbudget again") from exc
    raise FluxError("the configuration template is missing", "install fluxbudget again")
