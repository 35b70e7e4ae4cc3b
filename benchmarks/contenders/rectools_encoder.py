"""RecTools' SASRec with the full softmax: its own layers, loss and optimizer, without its data loader.

Its feed-forward layers are as wide as its embeddings, or with `wide` as ours. bfloat16 is Lightning's "bf16-mixed".
Runs in the environment of `requirements-peers.txt`.
"""

import contextlib
import dataclasses
import warnings
from typing import Any

import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from rectools.models.nn.item_net import IdEmbeddingsItemNet, SumOfEmbeddingsConstructor
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.net_blocks import LearnableInversePositionalEncoding, PointWiseFeedForward
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
from rectools.models.nn.transformers.torch_backbone import TransformerTorchBackbone

from benchmarks.flops import encoder_step
from benchmarks.protocol import Work, serve
from benchmarks.workload import Workload


class Layers(SASRecTransformerLayers):
    """RecTools' layers with feed-forward layers of any width: its SASRec has no option for it."""

    def __init__(self, workload: Workload):
        super().__init__(workload.num_layers, workload.width, workload.num_heads, 0.0)
        for block in self.transformer_blocks:
            block.feed_forward = PointWiseFeedForward(workload.width, workload.hidden, 0.0, torch.nn.ReLU())


def setup(options: dict[str, Any]):
    workload = Workload(**options["workload"])
    if not options.get("wide"):
        workload = dataclasses.replace(workload, hidden=workload.width)  # as RecTools' own
    dtype = options.get("dtype", "float32")
    context = MixedPrecision("bf16-mixed", "cpu").forward_context if dtype == "bfloat16" else contextlib.nullcontext
    torch.manual_seed(0)
    classes, width = workload.num_items + 1, workload.width  # with the padding item
    items_net = SumOfEmbeddingsConstructor(classes, [IdEmbeddingsItemNet(width, classes, dropout_rate=0.0)])
    backbone = TransformerTorchBackbone(
        n_heads=workload.num_heads,
        dropout_rate=0.0,
        item_model=items_net,
        pos_encoding_layer=LearnableInversePositionalEncoding(True, workload.history_length, width),
        transformer_layers=Layers(workload),
        similarity_module=DistanceSimilarityModule(distance="dot"),
        use_causal_attn=True,
    )
    module = TransformerLightningModule(
        torch_model=backbone,
        model_config={},
        dataset_schema={},
        item_external_ids=[],
        item_extra_tokens=("PAD",),
        data_preparator=None,
        lr=1e-3,
        gbce_t=0.2,
        loss="softmax",
    )
    module.on_train_start()
    optimizer = module.configure_optimizers()
    sequences = torch.from_numpy(workload.sequences()).long()
    batch = {
        "x": sequences[:, :-1].contiguous(),
        "y": sequences[:, 1:].contiguous(),
        "yw": torch.ones(workload.batch_size, workload.history_length),
    }

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with context():
            loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return Work(step, {"dtype": dtype, "flops": encoder_step(workload)})


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no Trainer to log to
    serve(setup, ("rectools", "torch"))
