"""Libraries that tell the caller's terminal what only we can do anything about."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def absl_warnings_unsaid() -> Iterator[None]:
    """Warnings of absl's logger, which is that of Orbax and TFDS, are left out inside; errors are not."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(before)
