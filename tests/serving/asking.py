"""What is asked of a server in tests, and what is held against its answers."""

import jax
import numpy as np

from tests.user_models import HISTORY


def titles_of(model):
    """Each once."""
    return list(dict.fromkeys(model.catalogue.titles[1:]))


def events_of(model, seed, count=HISTORY):
    random, titles = np.random.default_rng(seed), titles_of(model)
    return [
        {"item": titles[n], "rating": float(r)}
        for n, r in zip(random.integers(0, len(titles), count), random.integers(1, 6, count), strict=True)
    ]


def problem(response, status):
    """The sentence of a response that says what is wrong."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    told = response.json()
    assert {*told} == {"type", "title", "status", "detail"}
    assert told["status"] == status
    assert "Traceback" not in response.text
    return told["detail"]


def same(answers, wanted):
    """Whether a server's items are the library's answers, which batches of other sizes round differently."""
    assert [answer["title"] for answer in answers] == [answer.text for answer in wanted]
    np.testing.assert_allclose([a["score"] for a in answers], [a.score for a in wanted], rtol=1e-4)


class Compilations:
    """How many programs are made while it is entered."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        return self

    def _count(self, event, seconds, **_):
        self.count += event == "/jax/core/compile/jaxpr_to_mlir_module_duration"

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._count)
