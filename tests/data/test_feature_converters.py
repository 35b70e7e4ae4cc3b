import numpy as np
import pytest

from user_llm.data.favorites import favorite_categories
from user_llm.data.pipeline import TrainBatches
from user_llm.data.prompts import Prompts, catalogue_documents
from user_llm.data.sources import TextSource, UserLLMSource, decoder_features
from user_llm.data.windows import Windows
from user_llm.tasks import TASKS as REGISTERED
from user_llm.tasks.favorite_category import FavoriteCategoryAnswers
from user_llm.tasks.next_item import TitleAnswers
from user_llm.tasks.review_generation import ReviewAnswers

MAX_INPUTS = 60
TASKS = ("next_item", "favorite_category", "review_generation")


@pytest.fixture(scope="module")
def names(table, vocabulary, make_names):
    return make_names(table, vocabulary, 9)


@pytest.fixture(scope="module")
def titles(names):
    return names.titles


@pytest.fixture(scope="module")
def make_source(table, names):
    catalogue, vocabulary = table.catalogue, names.titles.vocabulary
    tasks = {
        "next_item": TitleAnswers(catalogue.titles, names.titles),
        "favorite_category": FavoriteCategoryAnswers(
            catalogue.category_names, names.categories, catalogue.item_categories
        ),
        "review_generation": ReviewAnswers(table, vocabulary, 12),
    }

    def make(text_history=0, split="train", task="next_item", **options):
        wording, answers = REGISTERED[task].wording("movie", "genre"), tasks[task]
        windows = Windows(table, history_length=5, split=split, **options)
        max_inputs = MAX_INPUTS if task == "next_item" else 2 * MAX_INPUTS
        prompts = Prompts(names, wording, max_inputs=max_inputs, text_history=text_history)
        return UserLLMSource(windows, prompts, answers)

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


@pytest.mark.parametrize("text_history", [0, 2])
def test_favorites_and_reviews_are_answered_behind_their_prompts(table, vocabulary, names, make_source, text_history):
    favorites, reviews = (make_source(text_history, task=task, min_history=1) for task in TASKS[1:])
    ids = np.random.default_rng(0).permutation(len(reviews))
    windows, events = reviews.windows.gather(ids), reviews.windows.label_positions(ids)
    texts = table.reviews(events)
    assert reviews.references(ids) == texts
    categories = favorite_categories(windows["history/item"], table.catalogue.item_categories)
    assert favorites.references(ids) == [table.catalogue.category_names[category] for category in categories]
    assert "" in texts
    assert 0 in categories  # a history without any category, which has no answer
    for source, label in ((favorites, categories), (reviews, np.zeros(len(ids)))):
        batch = source.gather(ids)
        np.testing.assert_array_equal(batch["label/answer"], label)
        for row, text in enumerate(source.references(ids)):
            prompt = batch["prompt_tokens"][row, : batch["prompt_lengths"][row]]
            whole = [*prompt, *batch["decoder_target_tokens"][row, len(prompt) - 1 :]]
            assert batch["decoder_input_tokens"][row].tolist() == whole[:-1]
            answer = batch["decoder_target_tokens"][row][batch["decoder_loss_weights"][row] > 0].tolist()
            full = [*vocabulary.encode(text), 2] if text else []
            if len(full) > source.answers.width:  # cut at a whole character
                (kept,) = vocabulary.decode_batch(np.array([answer]))
                assert text.startswith(kept)
                assert answer[-1] == 2
                assert source.answers.width - 3 <= len(answer) <= source.answers.width
            else:
                assert answer == full
    assert favorites.length == favorites.prompts.length + names.categories.targets.shape[1]
    written = vocabulary.decode_batch(reviews.gather(ids)["prompt_tokens"], reviews.gather(ids)["prompt_lengths"])
    for item, prompt in zip(windows["label/item"], written, strict=True):
        (title,) = vocabulary.decode_batch(names.titles.tokens[[item]], names.titles.lengths[[item]])
        assert title in prompt


def test_text_history_shows_nothing_but_the_events_before_the_label(table, vocabulary, make_source):
    for split in ("train", "test"):
        source = make_source(text_history=3, split=split, min_history=1)
        ids = np.arange(len(source))
        batch, labels = source.gather(ids), source.windows.label_positions(ids)
        for row, text in enumerate(vocabulary.decode_batch(batch["prompt_tokens"])):
            start = max(table.offsets[batch["user"][row]], labels[row] - 3)
            past = range(start + batch["dropped_events"][row], labels[row])
            titles = source.prompts.names.titles.tokens[[table.item[place] for place in past]]
            written = "".join(f" {title} |" for title in vocabulary.decode_batch(titles))
            assert text == f"The user's latest movies:{written} The next movie:"


def test_batches_of_a_source_stream(make_source):
    source = make_source(text_history=2)
    batch = TrainBatches(source, 6, seed=0).batch(3)
    assert {len(values) for values in batch.values()} == {6}


def test_more_text_than_history_is_refused(make_source):
    with pytest.raises(ValueError, match="text_history=6 writes out more events than history_length=5"):
        make_source(text_history=6)


@pytest.mark.parametrize("text_history", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_text_source_is_documents_and_answered_training_prompts(table, vocabulary, make_source, task, text_history):
    documents = catalogue_documents(table.catalogue, "movie")
    answers = make_source(text_history, task=task)
    source = TextSource(documents, answers, max_length=160)
    assert source.documents.cut == 0
    assert len(source) == 2 * max(len(documents), len(answers))
    batch = source.gather(np.arange(len(source)))
    assert set(batch) == {f"decoder_{name}" for name in ("input_tokens", "target_tokens", "loss_weights", "positions")}
    inputs, targets = batch["decoder_input_tokens"], batch["decoder_target_tokens"]
    assert inputs.shape == (len(source), source.length - 1)
    assert vocabulary.decode_batch(targets[::2]) == documents * (len(source) // 2 // len(documents))
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
    assert source.documents.cut == 1
    assert source.length == answers.length


def test_text_source_refuses_labels_that_are_held_out_and_sequences_that_do_not_fit(make_source):
    with pytest.raises(ValueError, match="learns from split 'train', got 'test'"):
        TextSource(["A"], make_source(split="test"), max_length=120)
    with pytest.raises(ValueError, match="0 documents and 14 training windows"):
        TextSource([], make_source(), max_length=120)
    with pytest.raises(ValueError, match="more than max_length=20"):
        TextSource(["A"], make_source(), max_length=20)
