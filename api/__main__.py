"""`python -m api` writes the committed openapi.json anew."""

from __future__ import annotations

from api.app import create_app
from api.openapi import COMMITTED, encoded
from api.settings import Settings

COMMITTED.write_bytes(encoded(create_app(Settings())))
