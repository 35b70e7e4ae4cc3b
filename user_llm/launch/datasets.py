"""The datasets that no run of a sweep builds by itself: whether they are there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from user_llm.builders.built import is_finished
from user_llm.launch.arguments import places_of
from user_llm.launch.resolve import resolve
from user_llm.launch.runs import Run
from user_llm.launch.scales import BUILDS


def unbuilt(runs: Sequence[Run], raw: Mapping[str, str], data_dir: str) -> Iterator[str]:
    """A line for each dataset of `scales.BUILDS` that the runs read and that is not built; `raw`, `data_dir`: flags."""
    folders: dict[str, str] = {}
    for run in runs:
        data = resolve(run.config, [*run.values(Path()), *places_of(run, raw, data_dir)]).data
        if data.dataset in BUILDS:
            folders[data.dataset] = data.data_dir
    for dataset, folder in folders.items():
        from user_llm.builders.families import builder_of  # brings TFDS, which takes seconds

        path = builder_of(dataset, data_dir=folder or None).data_path
        if not is_finished(path):
            yield (
                f"{dataset} is not built ({path} is not there): a run cannot build it. Build it first, with "
                f"`{BUILDS[dataset]}` and the same --data_dir, or leave it out with --datasets"
            )
