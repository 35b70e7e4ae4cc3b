"""Several tasks as one source: examples of all of them in one batch, in fixed proportions."""

from collections.abc import Callable, Sequence

import numpy as np

from user_llm.data.pipeline import Order, Sharded, Shuffled, Source, TrainBatches, TrainSource
from user_llm.data.sources import AnsweredPrompts, UserLLMSource, answered_batch
from user_llm.errors import UserError

Batch = dict[str, np.ndarray]

_BLOCK = 1000  # positions of the stream in which each task has exactly its share


class Mixture:
    """The windows of a split once for each task, numbered task after task.

    Args:
        sources: one a task, over the same windows or others.
        rates: how much of the training each has, in proportion to their sum.

    Attributes:
        split: of the sources.
        prompt_length: P, that of the widest task.
        answer_width: W, that of the widest task.
        length: T+1 = P + W.

    Raises:
        UserError: not one rate a source, or a rate that leaves a task out.
    """

    def __init__(self, sources: Sequence[UserLLMSource], rates: Sequence[float]):
        if len(rates) != len(sources) or min(rates) <= 0:
            raise UserError(f"expected {len(sources)} rates above 0, one a task, got {tuple(rates)}.")
        self.sources = tuple(sources)
        self.rates = np.asarray(rates, float) / np.sum(rates)
        self.split = sources[0].split
        self.prompt_length = max(source.prompt_length for source in sources)
        self.answer_width = max(source.answer_width for source in sources)
        self.length = self.prompt_length + self.answer_width
        self.vocabulary = sources[0].vocabulary
        self._starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of the examples `ids` [B], with what `UserLLMSource.gather` gives."""
        windows = self._of_each(ids, lambda source, own: source.windows.gather(own))
        return {**windows, **answered_batch(self.read(ids))}

    def read(self, ids: np.ndarray) -> AnsweredPrompts:
        """Prompts and answers of the examples `ids` [B], padded to the widest task."""

        def read(source: UserLLMSource, own: np.ndarray) -> dict[str, np.ndarray]:
            found = source.read(own)
            tokens = np.pad(found.tokens, ((0, 0), (0, self.length - found.tokens.shape[1])))
            prompts = np.pad(found.prompt_tokens, ((0, 0), (0, self.prompt_length - found.prompt_tokens.shape[1])))
            return found._replace(tokens=tokens, prompt_tokens=prompts)._asdict()

        return AnsweredPrompts(**self._of_each(ids, read))

    def order(self, seed: int, shard: int = 0, shards: int = 1) -> "MixedOrder":
        """The order in which it, or one shard of its users, is trained on."""
        bounds = [_bounds(source, shards)[shard : shard + 2] for source in self.sources]
        firsts = [start + first for start, (first, _) in zip(self._starts, bounds, strict=False)]
        return MixedOrder(firsts, [int(end - first) for first, end in bounds], self.rates, seed)

    def owners(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which source each example `ids` [B] is of, int [B], and its number there, int [B]."""
        task = np.searchsorted(self._starts, ids, side="right") - 1
        return task, ids - self._starts[task]

    def _of_each(self, ids: np.ndarray, read: Callable[[UserLLMSource, np.ndarray], Batch]) -> Batch:
        """What `read(source, its ids)` gives, put together in the order of `ids` [B]."""
        task, own = self.owners(np.asarray(ids))
        rows = [np.flatnonzero(task == index) for index in range(len(self.sources))]
        parts = [read(source, own[here]) for source, here in zip(self.sources, rows, strict=True) if len(here)]
        place = np.argsort(np.concatenate(rows))
        return {name: np.concatenate([part[name] for part in parts])[place] for name in parts[0]}


class Turns:
    """Which task each position of an endless stream belongs to, a pure function of seed and position.

    Of every thousand positions each task has its rate, to the nearest that sums up; which positions, is drawn anew
    for each thousand.

    Args:
        rates: shares that sum to 1.
        seed: of everything drawn.
    """

    def __init__(self, rates: np.ndarray, seed: int):
        self._seed = seed
        self._shares = np.diff(np.rint(np.cumsum([0, *rates]) * _BLOCK)).astype(np.int64)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The task at each of the positions int64 [B], int [B], and how many of its examples stand before, int [B]."""
        block, place = np.divmod(positions, _BLOCK)
        tasks, numbers = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        for number in np.unique(block):
            here = np.flatnonzero(block == number)
            of_block = self._block(int(number))
            before = np.empty(_BLOCK, np.int64)
            for index, share in enumerate(self._shares):
                mine = of_block == index
                before[mine] = number * share + np.arange(share)
            tasks[here], numbers[here] = of_block[place[here]], before[place[here]]
        return tasks, numbers

    def before(self, position: int) -> np.ndarray:
        """How many examples of each task stand before a position: int64 [tasks]."""
        number, place = divmod(position, _BLOCK)
        return number * self._shares + np.bincount(self._block(number)[:place], minlength=len(self._shares))

    def _block(self, number: int) -> np.ndarray:
        """int [1000]: which task stands at each position of a block."""
        tasks = np.repeat(np.arange(len(self._shares)), self._shares)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, 1, number]))).permutation(tasks)


def part_seed(seed: int, part: int, parts: int) -> int:
    """The seed of one of several tasks or shards: with one for all, a batch would ask the same users everything."""
    return int(np.random.SeedSequence([seed, parts]).generate_state(parts)[part])


class MixedOrder:
    """An endless stream of example numbers, in which every task has its turns and its own shuffled epochs.

    Args:
        firsts: number of the first example of each task.
        sizes: how many follow one another from there.
        rates, seed: see `Turns`.
    """

    def __init__(self, firsts: Sequence[int], sizes: Sequence[int], rates: np.ndarray, seed: int):
        self._turns = Turns(rates, seed)
        self._tasks = [
            Shuffled(size, part_seed(seed, task, len(sizes)), first)
            for task, (first, size) in enumerate(zip(firsts, sizes, strict=True))
        ]

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """The example numbers int64 [B] at positions int64 [B] of the stream."""
        tasks, numbers = self._turns.at(positions)
        ids = np.empty(len(positions), np.int64)
        for index, order in enumerate(self._tasks):
            mine = tasks == index
            ids[mine] = order.ids(numbers[mine])
        return ids


def train_batches(
    source: TrainSource | Mixture,
    batch_size: int,
    seed: int,
    *,
    rows: np.ndarray | None = None,
    shards: int = 1,
    reader: Source | None = None,
) -> TrainBatches:
    """What a stage trains on (`TrainBatches`): the examples of a source, or of a mixture in its order.

    Args:
        source, batch_size, seed, rows: see `TrainBatches`.
        shards: of the users, each shuffled alone, that have equal parts of every batch (`Sharded`).
        reader: what gathers the examples, where it is not the source itself.

    Raises:
        UserError: shards that do not divide the batch, or that there are not so many users for; or as `TrainBatches`.
    """
    if shards < 1:
        raise UserError(f"expected 1 shard or more, got {shards}.")
    orders: list[Order] = []
    for shard in range(shards):
        own = seed if shards == 1 else part_seed(seed, shard, shards)
        if isinstance(source, Mixture):
            orders.append(source.order(own, shard, shards))
        else:
            first, end = _bounds(source, shards)[shard : shard + 2]
            orders.append(Shuffled(int(end - first), own, int(first)))
    order = orders[0] if shards == 1 else Sharded(orders, batch_size)
    return TrainBatches(source if reader is None else reader, batch_size, seed, rows=rows, order=order)


def _bounds(source: TrainSource, shards: int) -> np.ndarray:
    return np.array([0, len(source)]) if shards == 1 else source.bounds(shards)
