"""FLOPs by formula are those of the products that a trace holds, ours and PyTorch's."""

import dataclasses
import math
import subprocess

import jax
import jax.extend
import numpy as np
import pytest
from jax.interpreters import partial_eval

from benchmarks.contenders import jax_encoder
from benchmarks.flops import encoder_step
from benchmarks.llm_workload import encoder_of, step_of
from benchmarks.peers_environment import is_installed, peers_python
from benchmarks.protocol import REPOSITORY
from benchmarks.workload import Workload
from tests.benchmarks import llm_models
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, causal_mask
from user_llm.training.objectives import history
from user_llm.training.trainable import STRATEGIES, trainable

SMALL = Workload(batch_size=3, history_length=7, num_items=500, num_layers=2, width=16, num_heads=4, hidden=24)


def traced(function, *arguments) -> int:
    """FLOPs of all matrix products in a traced function, whatever it is nested in; loops would count once.

    What nobody reads is left out, as XLA leaves it out: a frozen weight's gradient.
    """

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                ((contracted, _), _), left = equation.params["dimension_numbers"], equation.invars[0].aval.shape
                total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
            total += sum(count(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
        return total

    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def test_an_encoder_step_has_the_flops_of_its_trace():
    graphdef, tuned, buffers = parameters.split(jax_encoder.build_encoder(SMALL))
    batch = jax_encoder.build_batch(SMALL.sequences())

    def loss(tuned):
        total, _, _ = jax_encoder.dense_objective(parameters.merge(graphdef, tuned, buffers), batch, None)
        return total

    # The table's row of padding is multiplied too: one of 501.
    assert traced(jax.grad(loss), tuned) == pytest.approx(encoder_step(SMALL), rel=2e-3)


@pytest.mark.parametrize("strategy", ["full", "enc"])
def test_a_user_llm_step_has_the_flops_of_its_trace(strategy, tmp_path):
    assembly, batch = llm_models.assembly(tmp_path, strategy), llm_models.batch()
    graphdef, values, buffers = parameters.split(parameters.abstract(assembly.user_llm))
    trains = trainable(values, STRATEGIES[strategy])
    tuned, frozen = ({path: v for path, v in values.items() if trains[path] == tunes} for tunes in (True, False))

    def loss(tuned, frozen, buffers):
        model = parameters.merge(graphdef, {**tuned, **frozen}, buffers)
        tokens = batch["decoder_input_tokens"]
        mask = causal_mask(np.ones(tokens.shape, bool))
        hidden, _ = model(tokens, batch["decoder_positions"], mask, context=model.encode(*history(batch)))
        return model.logits(hidden[:, -llm_models.ANSWER :]).sum()

    config = dataclasses.asdict(assembly.language_model_config)
    formula = step_of(assembly.config, config, batch, vocabulary=llm_models.LLAMA.vocabulary)
    assert formula.flops() == traced(jax.value_and_grad(loss), tuned, frozen, buffers)


@pytest.mark.parametrize("first_layer", [0, 2])
def test_a_frozen_step_has_the_flops_that_pytorch_counts(first_layer, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `test` installs PyTorch on Python 3.11 only")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.contenders import torch_user_llm

    assembly, batch = llm_models.assembly(tmp_path), llm_models.batch()
    config = dataclasses.asdict(assembly.language_model_config)
    encoder = encoder_of(assembly.config, llm_models.USERS, llm_models.ITEMS)
    model = torch_user_llm.build(
        torch_user_llm.load(tmp_path, torch.float32), assembly.config, config, encoder, first_layer
    )
    # Fused kernels are no matrix products to the counter.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch_user_llm.tensors(batch)).backward()
    formula = step_of(
        assembly.config, config, batch, vocabulary=llm_models.LLAMA.vocabulary, first_layer=first_layer
    ).flops()
    # Its rotary angles are a product of positions and frequencies.
    assert counter.get_total_flops() == pytest.approx(formula, rel=2e-3)
    stored = step_of(
        assembly.config,
        config,
        batch,
        vocabulary=llm_models.LLAMA.vocabulary,
        first_layer=first_layer,
        stored=True,
    ).flops()
    below = traced_below(assembly, batch, first_layer)
    assert formula - stored == below


def traced_below(assembly, batch, layers: int) -> int:
    """FLOPs of a language model's first layers, forward."""
    if not layers:
        return 0
    config = dataclasses.replace(assembly.language_model_config, num_layers=layers)
    graphdef, values, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))

    def read(values, buffers):
        tokens = batch["decoder_input_tokens"]
        mask = causal_mask(np.ones(tokens.shape, bool))
        return parameters.merge(graphdef, values, buffers)(tokens, batch["decoder_positions"], mask)[0]

    return traced(read, values, buffers)


@pytest.mark.skipif(not is_installed(), reason="python -m benchmarks installs the peers' environment")
def test_rectools_has_the_flops_that_pytorch_counts():
    """With its own feed-forward layers and with ours, in float32 and in bfloat16."""
    code = f"""
import dataclasses
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from benchmarks.contenders.rectools_encoder import setup

for options in ({{}}, {{"wide": True, "dtype": "bfloat16"}}):
    work = setup({{"workload": {dataclasses.asdict(SMALL)}, **options}})
    first = work.round()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        second = work.round()
    print(counter.get_total_flops() / work.facts["flops"], second < first, work.facts["dtype"])
"""
    done = subprocess.run([peers_python(), "-W", "ignore", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    for line, dtype in zip(done.stdout.splitlines(), ("float32", "bfloat16"), strict=True):
        ratio, learns, name = line.split()
        assert (float(ratio), learns, name) == (pytest.approx(1, rel=5e-3), "True", dtype)
