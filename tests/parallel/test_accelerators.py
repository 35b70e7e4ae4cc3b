"""A GPU or TPU that JAX does not use is told of, and nothing is said where all is well or meant."""

import jax
import pytest

from user_llm.parallel.accelerators import unused


@pytest.mark.parametrize(("device", "says"), [("nvidia0", "user-llm[cuda]"), ("accel3", "user-llm[tpu]")])
def test_an_idle_accelerator_is_told_of(device, says, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for name in ("nvidiactl", "accelerator", "null"):  # of drivers, or nothing
        (tmp_path / name).touch()
    assert unused(tmp_path) == ""
    (tmp_path / device).touch()
    assert says in unused(tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert unused(tmp_path) == ""


def test_the_cpu_may_be_meant(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert unused(tmp_path) == ""
