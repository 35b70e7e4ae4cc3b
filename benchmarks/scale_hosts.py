"""Hosts and hours of a large run, from rates that were measured and figures that are assumed; each step says which.

Nothing here was run. A core is taken for as fast as the core that the rates are of, and chips for as busy as `Machine`
says.
"""

import dataclasses
from collections.abc import Mapping

from benchmarks.flops import encoder_layers, encoder_step
from benchmarks.scale_model import LINES, Size
from benchmarks.scale_stages import READ_WINDOWS
from benchmarks.workload import Workload
from user_llm.builders.beam.on_beam import SIZES
from user_llm.store.records import Layout

HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Machine:
    """A choice of machines.

    Attributes:
      name: as the seller has it.
      chips: all of them; chips_per_host: those of a host.
      flops: of a chip at its best, bfloat16 (data sheet).
      utilisation: share of it that a step reaches (assumed).
      chip_bytes: memory of a chip (data sheet).
      host_cores, host_bytes: of a host (data sheet).
    """

    name: str
    chips: int
    chips_per_host: int
    flops: float
    utilisation: float
    chip_bytes: float
    host_cores: int
    host_bytes: float

    @property
    def hosts(self) -> int:
        """How many."""
        return self.chips // self.chips_per_host

    def hours(self, flops: float) -> float:
        """Of all chips, for so many FLOPs."""
        return flops / (self.chips * self.flops * self.utilisation) / HOUR


V5E = Machine("TPU v5e-256", 256, 4, 197e12, 0.3, 16e9, 112, 192e9)
"""Data sheets of Cloud TPU. That a step reaches 30 % of the peak is assumed."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done with the data.

    Attributes:
      size: of the data.
      encoder: its dimensions; `num_items` is the catalogue's.
      negatives: items of a sampled softmax.
      parameters: N, of the language model.
      tokens: of a prompt with its answer.
      examples: that stage `user_llm` trains on.
      evaluated: users that are ranked by beams.
      beams: of an answer.
      kept: events of a user whose vectors a store has (`integration.newest`).
    """

    size: Size
    encoder: Workload
    negatives: int = 8_192
    parameters: float = 270e6
    tokens: int = 56
    examples: float = 1e8
    evaluated: int = 1_000_000
    beams: int = 10
    kept: int = 50


BILLION = Job(Size(10**9, 100, 10**7), Workload(batch_size=1, num_items=10**7))
"""A billion users of a hundred events, ten million items, the paper's encoder."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the run.

    Attributes:
      name: of it.
      hosts: that work on it.
      hours: on the clock, where all of them are busy.
      bytes: that it leaves or needs; 0 where it does neither.
      of_what: what the bytes are.
      by: the rates and assumptions that it uses.
    """

    name: str
    hosts: int
    hours: float
    bytes: float
    of_what: str
    by: str


BEAM_EVENT = 2.2e-6
"""Core seconds of a row by Beam itself, its workers' steps included (docs/data.md, one worker)."""
_RAW_EVENT = 27.0  # bytes of a row of MovieLens' ratings
_SPILLED_EVENT = 40.0
"""Bytes of a row (user, item, rating, time, line, each of 8) in a sort that DuckDB's memory does not hold: counted, as
the runs that rates are of sort in memory."""
_OF_A_WINDOWED_USER = 68.0
"""Bytes that `data/windows.py` holds for a user while it is made; 26 from then on (tracemalloc, a million users)."""


def evaluated_bytes(job: Job) -> float:
    """What every process holds for an evaluated user: the history, ten items, the rank."""
    return 4.0 * job.encoder.history_length + 40 + 8


def encoder_flops(job: Job, softmax_over: int) -> float:
    """Of one epoch in which each event is learnt once; `softmax_over`: items that logits are computed for."""
    workload = dataclasses.replace(job.encoder, batch_size=1, num_items=softmax_over)
    return job.size.events * encoder_step(workload) / workload.history_length


def table_bytes(job: Job, tables: str) -> float:
    """Of the table of items in training: float32 parameters and gradients, and the optimizer's state.

    Args:
      tables: `adam`, two floats an element; or `rowwise`, one a row.
    """
    rows, width = job.size.items + 1, job.encoder.width
    state = {"adam": 2 * width, "rowwise": 1}[tables]
    return 4.0 * rows * (2 * width + state)


def checkpoint_bytes(job: Job, tables: str) -> float:
    """Of one that holds the table of items: what `table_bytes` counts, without gradients."""
    return table_bytes(job, tables) - 4.0 * (job.size.items + 1) * job.encoder.width


def record_bytes(job: Job, dtype: str) -> int:
    """Of a user's record."""
    return Layout(job.encoder.history_length, job.kept, job.encoder.width, 0, False, dtype).columns.itemsize


def stored_bytes(job: Job, dtype: str) -> int:
    """Of a user in a folder of LMDB: what is longer than half a page of 4,096 bytes has whole pages, with a header."""
    return -(-(record_bytes(job, dtype) + 16) // 4096) * 4096


def plan(rates: Mapping[str, float], job: Job, machine: Machine) -> list[Step]:
    """The steps of a run, in their order.

    Args:
      rates: of `scale_model.fit` and `scale_rates.measure_rates`.
    """
    size, events, hosts = job.size, job.size.events, machine.hosts
    cores = hosts * machine.host_cores
    encode = job.encoder.history_length * encoder_layers(job.encoder).forward(job.encoder.history_length)
    of_read = next(line for line in LINES if "read_miss" in line.rates)
    read = of_read.predict(rates, size) / READ_WINDOWS * size.events_per_user / job.encoder.history_length
    text = 2 * job.parameters * job.tokens
    assumed = f"FLOPs (flops.py), {machine.utilisation:.0%} of a chip's peak"
    return [
        Step("raw rows", 1, 0, _RAW_EVENT * events, "CSV", "27 bytes a row of MovieLens"),
        Step("build, DuckDB", 1, rates["build_event"] * events / HOUR,
             (rates["build_disk_event"] + _SPILLED_EVENT) * events,
             "disk at the peak",
             "build_event, as if one core did it; build_disk_event, and 40 bytes a row of a sort that spills"),
        Step("build, Beam: workers", hosts, BEAM_EVENT * events / min(cores, SIZES.most_groups) / HOUR,
             rates["shuffle_event"] * events, "shuffled",
             "2.2 µs of a core a row (docs/data.md), shuffle_event; as many cores as groups of users"),
        Step("build, Beam: columns by one process", 1, rates["columns_event"] * events / HOUR,
             (4 + 1 + 8) * events + 26.0 * size.users, "columns", "columns_event"),
        Step("count items, by every process", hosts, rates["count_event"] * events / HOUR, 5 * events,
             "read by each", "count_event"),
        Step("encoder, one epoch, full softmax", hosts, machine.hours(encoder_flops(job, size.items)),
             table_bytes(job, "adam"), "table, gradients, Adam", assumed),
        Step("encoder, one epoch, sampled softmax", hosts, machine.hours(encoder_flops(job, job.negatives)),
             table_bytes(job, "rowwise"), "table, gradients, rowwise", assumed),
        Step("a checkpoint of it", 1, 0, checkpoint_bytes(job, "adam"), "table and Adam", "3 floats an element"),
        Step("windows for it, if cores set the pace", hosts, read / cores / HOUR, _OF_A_WINDOWED_USER * size.users,
             "memory of every process", "read_user, read_miss; 68 bytes a user (data/windows.py)"),
        Step("User-LLM, 10⁸ examples", hosts, machine.hours(3 * text * job.examples), 16.0 * job.parameters,
             "parameters, gradients, Adam", f"6 N D, {machine.utilisation:.0%} of a chip's peak"),
        Step("evaluation by beams, 10⁶ users", hosts, machine.hours(text * job.evaluated * job.beams),
             evaluated_bytes(job) * job.evaluated, "histories, ranks, items, in every process", "2 N D a beam"),
        Step("evaluation by the encoder, all users", hosts,
             machine.hours(size.users * (encode + 2.0 * job.encoder.width * size.items)),
             evaluated_bytes(job) * size.users, "histories, ranks, items, in every process", assumed),
        Step("vectors of all users, cores", hosts, rates["embed_user"] * size.users / cores / HOUR,
             float(stored_bytes(job, "bfloat16")) * size.users, "store, bfloat16", "embed_user, of 45 events"),
        Step("trie of all titles", 1, rates["trie_title"] * size.items / HOUR, rates["trie_bytes_title"] * size.items,
             "memory of every device", "trie_title, trie_bytes_title"),
        Step("audit, by every process", hosts, rates["audit_event"] * events / HOUR, 40.0 * size.users,
             "memory of every process", "audit_event, 40 bytes a user (inspect/audit.py)"),
    ]  # fmt: skip
