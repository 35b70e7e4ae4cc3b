"""The cache that needs no Beam, read back by SeqIO."""

import numpy as np
import pytest
import seqio

from user_llm.errors import UserError
from user_llm.seqio_road import cache
from user_llm.seqio_road.feature_converters import UserLLMFeatureConverter
from user_llm.seqio_road.tasks import find, register_study, task_lengths


@pytest.fixture
def task(make_study):
    """Reviews, of which some are missing: examples without targets."""
    return find(register_study(make_study("review_generation"))[0])


@pytest.fixture
def cached(task, tmp_path):
    before = list(seqio.get_global_cache_dirs())
    folder = cache.write_cache(task.name, tmp_path, num_shards=2)
    seqio.add_global_cache_dirs([str(tmp_path)])
    yield folder
    seqio.set_global_cache_dirs(before)


def in_order(dataset, by):
    return sorted(dataset.as_numpy_iterator(), key=lambda example: tuple(np.ravel(example[by])))


def test_what_is_read_back_is_what_was_written(task, cached):
    files = {f"{split}.tfrecord-{shard:05d}-of-00002" for split in task.splits for shard in range(2)}
    told = {f"{what}.{split}.json" for split in task.splits for what in ("info", "stats")}
    assert {path.name for path in cached.iterdir()} == files | told | {"COMPLETED"}
    fresh = in_order(task.get_dataset(split="train", shuffle=False), "label/event")
    again = in_order(task.get_dataset(split="train", shuffle=False, use_cached=True), "label/event")
    assert len(fresh) == len(again) == task.get_cached_stats("train")["examples"]
    for one, other in zip(fresh, again, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            assert np.asarray(one[name]).dtype == np.asarray(other[name]).dtype
    eos = task.output_features["targets"].vocabulary.eos_id
    tokens = sum(int(np.sum(example["targets"] != eos)) for example in fresh)
    assert task.get_cached_stats("train")["targets_tokens"] == tokens
    options = dict(dataset_split="test", use_cached=True, shuffle=False)
    lengths = task_lengths(task.name)
    found = in_order(seqio.get_dataset(task.name, lengths, UserLLMFeatureConverter(), **options), "user")
    answered = task.answered("test")
    for name, values in answered.gather(np.arange(len(answered))).items():
        np.testing.assert_array_equal(np.stack([example[name] for example in found]), values, err_msg=name)
    with pytest.raises(UserError, match="would cut inputs"):
        task.get_dataset({**lengths, "inputs": 3}, split="train", use_cached=True)


def test_a_folder_that_is_there_is_refused(task, tmp_path):
    (tmp_path / task.name).mkdir()
    with pytest.raises(UserError, match="exists already: delete it"):
        cache.write_cache(task.name, tmp_path)


def test_a_cache_cut_short_is_none(task, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_count", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.write_cache(task.name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_tells_a_wrong_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cache.main(["--task=user_llm_movielens_20n_next_item", f"--output_dir={tmp_path}"])
    assert "did you mean user_llm_movielens_20m_next_item" in capsys.readouterr().err
