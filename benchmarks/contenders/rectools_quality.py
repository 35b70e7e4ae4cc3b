"""RecTools' SASRec (softmax) or HSTU, trained by its own `fit`, ranked by our metrics after every epoch.

    python -m benchmarks.contenders.rectools_quality '{"split": "split.npz", "model": "sasrec", …}'

Runs in the environment of `requirements-peers.txt`.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.hstu import HSTUModel

from benchmarks.plain_ranks import ranks_of
from user_llm.evaluation.metrics import ranking_metrics

_USERS_AT_ONCE = 256


class Split:
    """The events of a dataset: training ends two before each user's last, which are validation's and the test's."""

    def __init__(self, path: str, length: int):
        with np.load(path) as file:
            self.item, self.timestamp, self.offsets = (file[name] for name in ("item", "timestamp", "offsets"))
            self.items, self.validation_users = int(file["num_items"]), file["validation_users"]
        self.length = length
        self.test_users = np.flatnonzero(np.diff(self.offsets) > 2)

    def training(self) -> pd.DataFrame:
        """What may be learnt from, as RecTools reads it."""
        users = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        known = np.arange(len(users)) < self.offsets[1:][users] - 2
        times = pd.to_datetime(self.timestamp[known], unit="s")  # RecTools sorts them with a stable order
        return pd.DataFrame(
            {Columns.User: users[known], Columns.Item: self.item[known], Columns.Weight: 1.0, Columns.Datetime: times}
        )

    def asked(self, users: np.ndarray, back: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Items before the label that is `back` from the end, their times with the label's, and the labels."""
        ends = self.offsets[users + 1] - back
        spans = list(zip(self.offsets[users], ends, strict=True))
        return (
            [self.item[start:end] for start, end in spans],
            [self.timestamp[start : end + 1] for start, end in spans],
            self.item[ends],
        )


def rank(model: Any, split: Split, users: np.ndarray, back: int) -> dict[str, np.ndarray]:
    """Ranks of the labels among all items, with and without those that the user has met."""
    network, preparator, device = model.lightning_model.torch_model, model.data_preparator, "cpu"
    external = np.asarray(preparator.item_id_map.external_ids)[preparator.n_item_extra_tokens :].astype(np.int64)
    inner = np.zeros(split.items + 1, np.int64)
    inner[external] = np.arange(len(external)) + preparator.n_item_extra_tokens
    training = network.training
    network.eval()
    found: dict[str, list[np.ndarray]] = {"unseen": [], "all": []}
    with torch.no_grad():
        table = network.item_model.get_all_embeddings()
        for start in range(0, len(users), _USERS_AT_ONCE):
            histories, times, labels = split.asked(users[start : start + _USERS_AT_ONCE], back)
            x = np.zeros((len(histories), split.length), np.int64)
            unix = np.zeros((len(histories), split.length + 1), np.int64)
            for row, (items, when) in enumerate(zip(histories, times, strict=True)):
                kept = inner[items] > 0
                ids, moments = inner[items][kept][-split.length :], np.append(when[:-1][kept], when[-1])
                moments = moments[-(len(ids) + 1) :]
                x[row, split.length - len(ids) :] = ids
                unix[row] = np.concatenate([np.full(split.length - len(ids), moments[0]), moments])
            batch = {"x": torch.from_numpy(x).to(device), "unix_ts": torch.from_numpy(unix).to(device)}
            states = network.similarity_module.session_tower_forward(network.encode_sessions(batch, table)[:, -1])
            logits = (states @ network.similarity_module.item_tower_forward(table).T).numpy()
            scores = np.full((len(x), split.items + 1), -np.inf, np.float32)
            scores[:, external] = logits[:, preparator.n_item_extra_tokens :]
            most = max(map(len, histories))
            seen = np.stack([np.pad(items, (most - len(items), 0)) for items in histories])
            found["unseen"].append(ranks_of(scores, labels, seen))
            found["all"].append(ranks_of(scores, labels, np.zeros_like(seen)))
    network.train(training)
    return {name: np.concatenate(parts) for name, parts in found.items()}


class Curve(pytorch_lightning.Callback):
    """Ranks the validation labels after every epoch, notes the seconds of training, keeps the best weights.

    Ends the training after `patience` epochs without a better Recall@10, or `hours`. Every epoch leaves a checkpoint
    with which a second start goes on.
    """

    def __init__(self, split: Split, folder: Path, patience: int, hours: float):
        self._split, self._path, self._patience, self._hours = split, folder / "curve.jsonl", patience, hours
        self._checkpoint = folder / "last.ckpt"
        self._rows: list[dict[str, float]] = []
        self.model: Any = None
        self.weights: dict[str, torch.Tensor] = {}

    def state_dict(self):
        return {"rows": self._rows, "weights": self.weights}

    def load_state_dict(self, state):
        self._rows, self.weights = state["rows"], state["weights"]

    def on_train_epoch_start(self, trainer, module):
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        seconds = time.perf_counter() - self._started + (self._rows[-1]["seconds"] if self._rows else 0.0)
        ranks = rank(self.model, self._split, self._split.validation_users, 2)
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "seconds": round(seconds, 2)}
        for name, values in ranks.items():
            row |= {f"{name}/{metric}": float(column.mean()) for metric, column in ranking_metrics(values).items()}
        row["loss"] = float(trainer.callback_metrics.get("train_loss", float("nan")))
        recalls = [earlier["unseen/recall@10"] for earlier in self._rows]
        if row["unseen/recall@10"] > max(recalls, default=-1.0):
            self.weights = {name: value.clone() for name, value in module.torch_model.state_dict().items()}
        recalls.append(row["unseen/recall@10"])
        self._rows.append(row)
        self._path.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        print(row, file=sys.stderr, flush=True)
        without = len(recalls) - 1 - int(np.argmax(recalls))
        trainer.should_stop = without >= self._patience or seconds > self._hours * 3600
        trainer.save_checkpoint(self._checkpoint)


class Resuming(pytorch_lightning.Trainer):
    """A trainer that goes on from a checkpoint, where there is one: RecTools' `fit` hands on no path of any."""

    checkpoint: Path

    def fit(self, model, *args, **options):
        goes_on = self.checkpoint.is_file()
        model.is_fitted = goes_on  # else it draws its weights anew at the start, over those of the checkpoint
        super().fit(model, *args, **options, ckpt_path=str(self.checkpoint) if goes_on else None)


def main(options: dict[str, Any]) -> None:
    warnings.filterwarnings("ignore")
    folder, split = Path(options["folder"]), Split(options["split"], options["length"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.get("threads", torch.get_num_threads()))
    pytorch_lightning.seed_everything(options["seed"])
    curve = Curve(split, folder, options["patience"], options["hours"])

    def trainer() -> pytorch_lightning.Trainer:
        quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
        made = Resuming(max_epochs=options["epochs"], callbacks=[curve], accelerator="cpu", **quiet)
        made.checkpoint = folder / "last.ckpt"
        return made

    shared = dict(
        n_blocks=options["layers"],
        n_heads=options["heads"],
        n_factors=options["width"],
        dropout_rate=options["dropout"],
        session_max_len=split.length,
        batch_size=options["batch_size"],
        lr=options["learning_rate"],
        loss="softmax",
        get_trainer_func=trainer,
    )
    if options["model"] == "sasrec":
        model: Any = SASRecModel(**shared)
    else:
        model = HSTUModel(**shared, relative_time_attention=True, relative_pos_attention=True)
    curve.model = model
    # `fit` copies its trainer, and the callbacks with it, but needs this very one.
    type(curve).__deepcopy__ = lambda self, memo: self
    model.fit(Dataset.construct(split.training()))
    model.lightning_model.torch_model.load_state_dict(curve.weights)
    ranks = rank(model, split, split.test_users, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(folder / "ranks.npz", users=split.test_users, peak_bytes=peak, **ranks)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
