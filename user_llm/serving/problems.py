"""Why a request is refused, in the words of HTTP and of RFC 9457 (problem+json)."""

import http


class Refused(Exception):
    """A request that is not answered.

    Attributes:
      status: of the response.
      detail: one sentence for who asked.
      retry_after: seconds after which to come again; None: coming again does not help.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None):
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        more = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return more | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


MEDIA_TYPE = "application/problem+json"

_LONGEST = 2000  # characters of a detail, which may quote what was sent


def problem(status: int, detail: str) -> dict[str, str | int]:
    """The body of a response that says what is wrong."""
    return {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail if len(detail) <= _LONGEST else detail[:_LONGEST] + "…",
    }
