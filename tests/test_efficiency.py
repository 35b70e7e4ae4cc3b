"""The measurements of a tiny model: what is counted against the same counted by hand; no clock is judged."""

import numpy as np
import pytest

from user_llm import schema
from user_llm.config import ConfigError
from user_llm.efficiency import programs
from user_llm.efficiency.programs import PERCEIVER, STORED, TEXT_PROMPT, USER_LLM, Approach, interleaved, measure
from user_llm.efficiency.report import render
from user_llm.models import attention, parameters

USERS, ANSWER = 2, 4


def tiny(**changes):
    config = schema.get_config()
    config.data.dataset = "movielens/simulated"
    config.prompt.max_targets = ANSWER
    config.encoder.update(num_layers=1, width=16, num_heads=2, hidden=16)
    config.llm.update(vocabulary_size=300, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, hidden=24)
    config.llm.max_length = 1000
    config.integration.update(num_heads=2, head_dim=8, hidden=16)
    config.integration.perceiver.update(num_layers=1, num_heads=2, hidden=16)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def rows():
    loops = dict(compute__scan_layers=True, encoder__chunk_rows=1, training__user_llm__accumulate=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "AT_ONCE", 2**16)  # the text prompt's queries go through in blocks, too
        patch.setattr(attention, "_BLOCK", 2**15)
        return {row["approach"]: row for row in measure(tiny(**loops), 50, USERS, rounds=2)}


def test_every_approach_goes_through_every_phase(rows):
    assert list(rows) == [TEXT_PROMPT, USER_LLM, PERCEIVER, USER_LLM + STORED, PERCEIVER + STORED]
    for name, row in rows.items():
        phases = ["prefill"] if name.endswith(STORED) else ["prefill", "decode", "train"]
        assert [phase for phase in row if phase in programs.PHASES] == phases
        for phase in phases:
            assert len(row[phase]["rounds"]) == 2
            assert min(row[phase]["seconds"], row[phase]["flops"], row[phase]["peak_mib"]) > 0


def test_tokens_and_context_are_those_of_the_papers_tables(rows):
    counts = {name: (row["llm_tokens"], row["context_vectors"]) for name, row in rows.items() if "train" in row}
    assert counts == {TEXT_PROMPT: (700, 0), USER_LLM: (32, 50), PERCEIVER: (32, 16)}
    assert rows[TEXT_PROMPT]["flops_6nd"] / rows[USER_LLM]["flops_6nd"] == pytest.approx(21.9, abs=0.05)
    soft = tiny(integration__kind="soft_prompt")
    described = {name: programs._description(Approach.of(soft, name, 50, USERS), name, 50) for name in counts}
    tokens = [row["llm_tokens"] for row in described.values()]
    assert tokens == [700, 32 + 50 + 10, 32 + 16 + 10]


def test_parameters_are_counted_by_component(rows):
    language_model = 300 * 16 + 4 * 16 * 16 + 3 * 16 * 24 + 3 * 16
    assert rows[TEXT_PROMPT]["parameters"] == {"language_model": language_model}
    assert rows[TEXT_PROMPT]["flops_6nd"] == 6 * language_model * 700
    assert set(rows[USER_LLM]["parameters"]) == {"encoder", "connector", "language_model"}
    assert set(rows[PERCEIVER]["parameters"]) == {"encoder", "perceiver", "connector", "language_model"}


def test_xla_counts_the_arithmetic_of_a_prefill_and_of_a_step(rows):
    """Matrix products by hand; XLA adds the softmax and the norms, at this width 12 to 15 in a hundred of these."""
    layer, slots = 4 * 16 * 16 + 3 * 16 * 24, 700 + ANSWER
    matrices = 700 * (layer + 2 * slots * 16) + 16 * 300  # keys of the prompt and the free slots; one row of logits
    assert rows[TEXT_PROMPT]["prefill"]["flops"] == pytest.approx(2 * USERS * matrices, rel=0.2)
    assert rows[TEXT_PROMPT]["prefill"]["flops"] > 2 * USERS * matrices
    length = 700 + ANSWER - 1
    step = 3 * (length * (layer + 2 * length * 16) + ANSWER * 16 * 300)
    assert rows[TEXT_PROMPT]["train"]["flops"] == pytest.approx(2 * USERS * step, rel=0.2)
    for name in (USER_LLM, PERCEIVER):
        assert rows[name + STORED]["prefill"]["flops"] < rows[name]["prefill"]["flops"]


def test_a_round_runs_every_program_and_the_first_run_of_each_is_not_counted(monkeypatch):
    monkeypatch.setattr(programs, "_LEAST_SECONDS", 0.0)
    order = []
    seconds = interleaved({name: lambda name=name: order.append(name) or np.zeros(1) for name in "ab"}, rounds=2)
    assert order == list("ababab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_the_report_has_the_papers_figures_beside_ours(rows):
    results = {
        "device": {"kind": "somewhere", "platform": "cpu"},
        "versions": {"jax": "1"},
        "config": "tiny",
        "users": USERS,
        "rows": list(rows.values()),
    }
    lines = render(results).splitlines()
    tables = [line for line in lines if line.startswith("| 50 |")]
    assert len(tables) == 3 + 5 + 5  # tokens and FLOPs of training, times, FLOPs and memory of a prefill
    assert "| 50 | User-LLM | 32 | 50 |" in tables[1]
    assert "| 21.9 | 21.9 |" in tables[1]
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert columns == {11, 9}


def test_random_weights_have_the_shapes_of_the_models():
    approach = Approach.of(tiny(), PERCEIVER, 50, USERS)
    graphdef, values, buffers = approach.model
    _, shapes, _ = parameters.split(parameters.abstract(approach.assembly.user_llm))
    assert {path: value.shape for path, value in values.items()} == {path: s.shape for path, s in shapes.items()}
    assert parameters.merge(graphdef, values, buffers).perceiver is not None


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ConfigError, match=r"integration.kind='none' has no User-LLM"):
        measure(tiny(integration__kind="none"), 50, USERS, rounds=1)
    with pytest.raises(ConfigError, match=r"TextPrompt of 100 events takes 1354 tokens .* at most 1000: raise"):
        measure(tiny(), 100, USERS, rounds=1)
