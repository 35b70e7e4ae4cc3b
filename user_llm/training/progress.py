"""A progress bar with loss, examples/s and time left on a terminal; plain lines now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from user_llm.parallel.processes import is_lead

_logger = logging.getLogger(__name__)


class Progress:
    """Progress of one stage, on standard error."""

    def __init__(self, name: str, start: int, steps: int, batch_size: int, *, seconds_between_lines: float = 15.0):
        self._name, self._steps, self._batch_size = name, steps, batch_size
        self._interval = seconds_between_lines
        disable = not (sys.stderr.isatty() and is_lead())
        self._bar = tqdm(total=steps, initial=start, desc=name, unit="step", dynamic_ncols=True, disable=disable)
        self._first = start
        self._begun = self._line_time = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def advance(self, step: int) -> None:
        """One more step is dispatched."""
        self._bar.update(step - self._bar.n)

    def show(self, step: int, loss: float | None = None, validation: Mapping[str, float] | None = None) -> None:
        """Shows values just fetched: `step` steps are really done."""
        now = time.perf_counter()
        if validation is not None:
            text = "  ".join(f"{name} {value:.4f}" for name, value in validation.items())
            self._write(f"{self._name}: step {step}/{self._steps}  validation {text}")
            return
        rate = (step - self._first) * self._batch_size / max(now - self._begun, 1e-9)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} examples/s", refresh=False)
        if self._bar.disable and (now - self._line_time >= self._interval or step == self._steps):
            left = (self._steps - step) * self._batch_size / max(rate, 1e-9)
            _logger.info(
                "%s: step %d/%d  loss %.4f  %.0f examples/s  %s left",
                self._name, step, self._steps, loss, rate, tqdm.format_interval(left),
            )  # fmt: skip
            self._line_time = now

    def _write(self, line: str) -> None:
        if self._bar.disable:
            _logger.info("%s", line)
        else:
            tqdm.write(line, file=sys.stderr)
