"""The page that a browser shows, and what it may do: its own script and style, asking this server, and nothing else."""

import base64
import hashlib
import importlib.resources
import re

TEXT = importlib.resources.files(__name__).joinpath("index.html").read_text(encoding="utf-8")


def _hashed(tag: str) -> str:
    """The one element of this name, as a Content-Security-Policy allows it."""
    (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", TEXT, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "content-security-policy": "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashed('script')}",
            f"style-src {_hashed('style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
