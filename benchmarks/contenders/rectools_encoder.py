"""RecTools' SASRec with the full softmax: its own layers, loss and optimizer, without its data loader.

Runs in the environment of `requirements-peers.txt`.
"""

import warnings
from typing import Any

import torch
from rectools.models.nn.item_net import IdEmbeddingsItemNet, SumOfEmbeddingsConstructor
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.net_blocks import LearnableInversePositionalEncoding
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
from rectools.models.nn.transformers.torch_backbone import TransformerTorchBackbone

from benchmarks.protocol import serve
from benchmarks.workload import Workload


def setup(options: dict[str, Any]):
    workload = Workload(**options["workload"])
    torch.manual_seed(0)
    classes, width = workload.num_items + 1, workload.width  # with the padding item
    items_net = SumOfEmbeddingsConstructor(classes, [IdEmbeddingsItemNet(width, classes, dropout_rate=0.0)])
    backbone = TransformerTorchBackbone(
        n_heads=workload.num_heads,
        dropout_rate=0.0,
        item_model=items_net,
        pos_encoding_layer=LearnableInversePositionalEncoding(True, workload.history_length, width),
        transformer_layers=SASRecTransformerLayers(workload.num_layers, width, workload.num_heads, 0.0),
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
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no Trainer to log to
    serve(setup, ("rectools", "torch"))
