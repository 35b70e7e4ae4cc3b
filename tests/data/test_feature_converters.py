import numpy as np
import pytest

from user_llm.data.feature_converters import TextSource, UserLLMSource, decoder_features
from user_llm.data.pipeline import TrainBatches
from user_llm.data.prompts import NextItemPrompts, catalogue_documents, next_item
from user_llm.data.vocabularies import TitleTokens, decode_batch
from user_llm.data.windows import Windows

MAX_INPUTS = 60


@pytest.fixture(scope="module")
def titles(table, vocabulary):
    return TitleTokens(table.catalogue, vocabulary, max_targets=9)


@pytest.fixture(scope="module")
def make_source(table, titles):
    def make(text_history=0, split="train", **options):
        windows = Windows(table, history_length=5, split=split, **options)
        prompts = NextItemPrompts(titles, next_item("movie"), max_inputs=MAX_INPUTS, text_history=text_history)
        return UserLLMSource(windows, prompts)

    return make


def test_decoder_features_of_a_known_sequence():
    features = decoder_features(np.array([[1, 7, 8, 9, 2, 0]]), np.array([5]), np.array([3]))
    assert features["decoder_input_tokens"].tolist() == [[1, 7, 8, 9, 2]]
    assert features["decoder_target_tokens"].tolist() == [[7, 8, 9, 2, 0]]
    assert features["decoder_loss_weights"].tolist() == [[0, 0, 1, 1, 0]]
    assert features["decoder_positions"].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("min_history", [None, 1])
@pytest.mark.parametrize("text_history", [0, 2, 5])
def test_batch_is_prompt_title_eos_with_weight_on_the_answer(table, titles, make_source, text_history, min_history):
    source = make_source(text_history, min_history=min_history)
    ids = np.random.default_rng(0).permutation(len(source))
    batch = source.gather(ids)
    windows = source.windows.gather(ids)
    prompts, lengths, dropped = source.prompts.build(windows["history/item"])
    for name in windows:
        np.testing.assert_array_equal(batch[name], windows[name])
    np.testing.assert_array_equal(batch["prompt_tokens"], prompts)
    np.testing.assert_array_equal(batch["prompt_lengths"], lengths)
    np.testing.assert_array_equal(batch["dropped_events"], dropped)
    assert batch["decoder_input_tokens"].shape == (len(ids), source.length - 1)
    for row, item in enumerate(batch["label/item"]):
        prompt = prompts[row, : lengths[row]].tolist()
        answer = [*titles.tokens[item, : titles.lengths[item]].tolist(), 2]
        padding = [0] * (source.length - len(prompt) - len(answer))
        whole = [*prompt, *answer, *padding]
        assert batch["decoder_input_tokens"][row].tolist() == whole[:-1]
        assert batch["decoder_target_tokens"][row].tolist() == whole[1:]
        weights = [0] * (len(prompt) - 1) + [1] * len(answer) + [0] * len(padding)
        assert batch["decoder_loss_weights"][row].tolist() == weights
    dtypes = {name: values.dtype for name, values in batch.items()}
    assert dtypes.pop("decoder_loss_weights") == np.float32
    assert set(dtypes.values()) == {np.dtype(np.int32)}


def test_text_history_shows_nothing_but_the_events_before_the_label(table, vocabulary, make_source):
    for split in ("train", "test"):
        source = make_source(text_history=3, split=split, min_history=1)
        ids = np.arange(len(source))
        batch, labels = source.gather(ids), source.windows.label_positions(ids)
        for row, text in enumerate(decode_batch(vocabulary, batch["prompt_tokens"])):
            start = max(table.offsets[batch["user"][row]], labels[row] - 3)
            past = range(start + batch["dropped_events"][row], labels[row])
            titles = source.prompts.titles.tokens[[table.item[place] for place in past]]
            written = "".join(f" {title} |" for title in decode_batch(vocabulary, titles))
            assert text == f"The user's latest movies:{written} The next movie:"


def test_batches_of_a_source_stream(make_source):
    source = make_source(text_history=2)
    batch = TrainBatches(source, 6, seed=0).batch(3)
    assert {len(values) for values in batch.values()} == {6}


def test_more_text_than_history_is_refused(make_source):
    with pytest.raises(ValueError, match="text_history=6 writes out more events than history_length=5"):
        make_source(text_history=6)


@pytest.mark.parametrize("text_history", [0, 2])
def test_text_source_is_documents_and_answered_training_prompts(table, vocabulary, make_source, text_history):
    documents = catalogue_documents(table.catalogue, "movie")
    answers = make_source(text_history)
    source = TextSource(documents, answers, max_length=120)
    assert source.cut == 0
    assert len(source) == 2 * max(len(documents), len(answers))
    batch = source.gather(np.arange(len(source)))
    assert set(batch) == {f"decoder_{name}" for name in ("input_tokens", "target_tokens", "loss_weights", "positions")}
    inputs, targets = batch["decoder_input_tokens"], batch["decoder_target_tokens"]
    assert inputs.shape == (len(source), source.length - 1)
    assert decode_batch(vocabulary, targets[::2]) == documents * (len(source) // 2 // len(documents))
    np.testing.assert_array_equal(inputs[:, 0], 1)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(batch["decoder_loss_weights"], targets > 0)
    expected = answers.gather(np.arange(len(source) // 2) % len(answers))["decoder_target_tokens"]
    np.testing.assert_array_equal(targets[1::2, : expected.shape[1]], expected)
    assert not targets[1::2, expected.shape[1] :].any()


@pytest.mark.parametrize("ids", [[4], [5], [4, 2], [5, 4, 5]])
def test_text_source_gives_an_example_the_same_in_any_batch(table, make_source, ids):
    source = TextSource(catalogue_documents(table.catalogue, "movie"), make_source(2), max_length=120)
    whole = source.gather(np.arange(len(source)))
    for name, values in source.gather(np.array(ids)).items():
        np.testing.assert_array_equal(values, whole[name][ids])


def test_text_source_counts_what_it_cuts(make_source):
    answers = make_source()
    source = TextSource(["A", "A " * 300, "B"], answers, max_length=answers.length)
    assert source.cut == 1
    assert source.length == answers.length


def test_text_source_refuses_labels_that_are_held_out_and_sequences_that_do_not_fit(make_source):
    with pytest.raises(ValueError, match="learns from split 'train', got 'test'"):
        TextSource(["A"], make_source(split="test"), max_length=120)
    with pytest.raises(ValueError, match="0 documents and 14 training windows"):
        TextSource([], make_source(), max_length=120)
    with pytest.raises(ValueError, match="more than max_length=20"):
        TextSource(["A"], make_source(), max_length=20)
