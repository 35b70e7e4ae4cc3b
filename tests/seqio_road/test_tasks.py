"""What SeqIO's tasks hold: against words spelt out by hand, the array road, and the windows themselves."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
import sentencepiece
import seqio
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from user_llm.data.answers import NameAnswers
from user_llm.data.prompts import Piece, Wording
from user_llm.data.vocabularies import load_vocabulary
from user_llm.errors import UserError
from user_llm.evaluation.text_metrics import recall_of_names
from user_llm.seqio_road.feature_converters import UserLLMFeatureConverter
from user_llm.seqio_road.tasks import find, register_study, task_lengths
from user_llm.tasks import TASKS, Task

TASK_NAMES = "next_item,favorite_category,review_generation"
LATEST = "The user's latest movies:"
MAX_TARGETS = 12


def spell(spm, text, most=MAX_TARGETS):
    """A name's tokens, cut at a whole character to leave room for EOS."""
    tokens = spm.encode(text)[: most - 1]
    while len(tokens) > 1 and spm.decode(tokens).endswith("\N{REPLACEMENT CHARACTER}"):
        tokens.pop()
    return tokens


def reference(spm, table, task, event, text_history, max_inputs):
    """(inputs, targets) of the label at `event`, written out in words with the sentencepiece library alone."""
    start = max(0, event - 5, *[offset for offset in table.offsets if offset <= event])
    past, item = table.item[start:event], table.item[event]
    catalogue = table.catalogue
    genres = [
        [name for name in (catalogue.category_names[c] for c in row) if name] for row in catalogue.item_categories
    ]
    if task == "next_item":
        pieces = [spm.encode("The next movie:" if text_history else "The user's next movie:")]
        answer = catalogue.titles[item]
    elif task == "favorite_category":
        pieces = [spm.encode("The favorite genre:" if text_history else "The user's favorite genre:")]
        counts = collections.Counter(genre for event_item in past for genre in genres[event_item])
        best = max(counts.values(), default=0)
        newest_first = [genre for event_item in reversed(past) for genre in genres[event_item]]
        answer = next((genre for genre in newest_first if counts[genre] == best), "")
    else:
        pieces = [spm.encode("Write a review for") + spell(spm, catalogue.titles[item])]
        if genres[item]:
            pieces.append(spm.encode("in the category") + spell(spm, genres[item][0]))
        pieces += [spm.encode("with a rating of") + spell(spm, table.rating_names[table.rating[event]])]
        pieces += [spm.encode("The review:")]
        (answer,) = table.reviews(np.array([event]))
    shown = [spell(spm, catalogue.titles[seen]) + spm.encode("|") for seen in past[-text_history:]] * bool(text_history)
    before = [spm.bos_id(), *(spm.encode(LATEST) if text_history else [])]
    fixed = len(before) + sum(map(len, pieces))
    while fixed + sum(map(len, shown)) > max_inputs:
        shown.pop(0)
    return [*before, *itertools.chain(*shown, *pieces)], [*spell(spm, answer), spm.eos_id()] if answer else []


@pytest.mark.parametrize("text_history", [0, 4])
def test_prompts_and_answers_of_both_roads_are_as_spelt_out_in_words(table, vocabulary, make_study, text_history):
    spm = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.file))
    for task in TASK_NAMES.split(","):
        max_inputs = 120 if task == "review_generation" else 60
        study = make_study(task, text_history=text_history, max_inputs=max_inputs, min_history=1)
        (name,) = register_study(study)
        answered, texts = study.source(task, "train"), study.source(task, "train").references
        batch = answered.gather(np.arange(len(answered)))
        examples = list(find(name).get_dataset(split="train", shuffle=False).as_numpy_iterator())
        assert len(examples) == len(answered) > 30
        empty = dropped = 0
        for row, example in enumerate(examples):
            inputs, targets = reference(spm, table, task, int(example["label/event"]), text_history, max_inputs)
            assert example["inputs"].tolist() == inputs
            assert example["targets"].tolist() == targets
            assert batch["prompt_tokens"][row, : batch["prompt_lengths"][row]].tolist() == inputs
            learnt = batch["decoder_loss_weights"][row] > 0
            assert batch["decoder_target_tokens"][row][learnt].tolist() == targets
            assert example["references"].decode() == texts(np.array([row]))[0]
            assert example["user_id"].decode() == table.user_ids[example["user"][0]]
            empty, dropped = empty + (not targets), dropped + int(example["dropped_events"][0])
        assert bool(empty) == (task != "next_item")  # an event without review, a history without genre
        assert bool(dropped) == bool(text_history)


def test_token_0_of_a_text_is_not_what_fills_up(table, make_study, read, tmp_path):
    """In GPT-2's vocabulary 0 is "!"; here every title has it in the middle of a prompt."""
    letters = ByteLevel.alphabet()
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate([*sorted(letters), "<end>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    catalogue = table.catalogue
    named = dataclasses.replace(catalogue, titles=["", *(f"!{number}!" for number in range(catalogue.num_items))])
    study = make_study(
        table=dataclasses.replace(table, catalogue=named), vocabulary=load_vocabulary(tmp_path), text_history=4
    )
    (name,) = register_study(study)
    dataset = seqio.get_dataset(name, task_lengths(name), UserLLMFeatureConverter(), dataset_split="test")
    found, answered = read(dataset), study.source("next_item", "test")
    for feature, values in answered.gather(np.arange(len(answered))).items():
        np.testing.assert_array_equal(found[feature], values, err_msg=feature)
    assert ((found["decoder_target_tokens"] == 0) & (found["decoder_loss_weights"] > 0)).any(axis=1).all()


def test_epochs_are_permutations_of_their_own_that_the_seed_gives(make_study):
    (name,) = register_study(make_study())
    task = find(name)
    size = task.num_input_examples("train")

    def events(seed, **options):
        dataset = task.source.get_dataset(split="train", seed=seed, **options).repeat(3).take(3 * size)
        return [int(example["label/event"]) for example in dataset.as_numpy_iterator()]

    one = events(5)
    epochs = [one[start : start + size] for start in range(0, 3 * size, size)]
    everything = sorted(events(None, shuffle=False)[:size])
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert events(5) == one
    assert events(6) != one
    # Through SeqIO, which likes to keep small sources in memory, and their first order with them.
    dataset = task.get_dataset(split="train", seed=5, num_epochs=None).take(3 * size)
    assert [int(example["label/event"]) for example in dataset.as_numpy_iterator()] == one


@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_hold_every_window_once(make_study, shuffle):
    (name,) = register_study(make_study())
    source = find(name).source

    def events(**options):
        dataset = source.get_dataset(split="train", shuffle=shuffle, seed=3, **options)
        return [int(example["label/event"]) for example in dataset.as_numpy_iterator()]

    shards = [events(shard_info=seqio.ShardInfo(index, 3)) for index in range(3)]
    assert sorted(itertools.chain(*shards)) == sorted(events())
    with pytest.raises(UserError, match="give a seed"):
        source.get_dataset(split="train", shard_info=seqio.ShardInfo(0, 3))


@pytest.mark.parametrize("feature", ["inputs", "targets"])
def test_lengths_that_would_cut_a_prompt_are_refused(make_study, feature):
    (name,) = register_study(make_study("review_generation"))
    lengths = task_lengths(name)
    lengths[feature] -= 1
    with pytest.raises(UserError, match=rf"would cut {feature} of up to {lengths[feature] + 1} tokens"):
        find(name).get_dataset(lengths, split="train")


def test_names_tell_whatever_defines_the_examples_apart(make_study, make_table):
    variants = [
        {},
        dict(history_length=6),
        dict(min_history=3),
        dict(validation=False),
        dict(text_history=2),
        dict(max_inputs=119),
        dict(max_targets=11),
        dict(table=dataclasses.replace(make_table([9, 8]), fingerprint="1" * 64)),
    ]
    names = [register_study(make_study(**options))[0] for options in variants]
    assert len(set(names)) == len(variants)
    assert register_study(make_study())[0] == names[0]
    assert "user_llm_movielens_latest_small_next_item_" in names[0]
    assert find(register_study(make_study(validation=False))[0]).splits == ("train", "test")


class LatestRating(Task):
    """A toy: how the user rated the last event of the history."""

    name = "latest_rating"
    headline = "recall@1"

    def wording(self, noun, category_noun):
        words = (Piece(f"The rating of the latest {noun}:"),)
        return Wording("latest_rating_v1", plain=words, before="", separator="|", after=words)

    def answers(self, study):
        answers = NameAnswers(study.rating_names, study.names.ratings)
        answers.labels = lambda batch: batch["history/rating"][:, -1]
        return answers

    def answer_names(self, names):
        return names.ratings

    def evaluate(self, study, trained): ...

    def asker(self, study, model, k): ...


def test_a_task_of_one_s_own_needs_no_code_of_ours(table, vocabulary, make_study):
    TASKS.register(LatestRating())
    try:
        (name,) = register_study(make_study("latest_rating"))
        examples = list(find(name).get_dataset(split="test", shuffle=False).as_numpy_iterator())
        for example in examples:
            latest = table.rating_names[table.rating[example["label/event"] - 1]]
            assert example["references"].decode() == latest
            assert vocabulary.decode(example["targets"]) == latest
            assert vocabulary.decode(example["inputs"]) == "The rating of the latest movie:"
        assert len(examples) == 7
    finally:
        TASKS.unregister("latest_rating")


def test_seqio_s_evaluator_reads_them(make_study):
    names = register_study(make_study("next_item,review_generation"))
    seqio.MixtureRegistry.remove("both")
    seqio.MixtureRegistry.add("both", [(name, 1.0) for name in names])
    evaluator = seqio.Evaluator(
        "both", UserLLMFeatureConverter(), eval_split="test", sequence_length=task_lengths("both")
    )

    def truth(dataset, *_):
        answers = []
        for number, example in dataset.as_numpy_iterator():
            tokens = example["decoder_target_tokens"][example["decoder_loss_weights"] > 0]
            answers.append((int(number), np.pad(tokens, (0, MAX_TARGETS - len(tokens))).tolist()))
        return answers[::-1]

    def title_of_another(dataset, *_):
        answers = dict(truth(dataset))
        return [(number, answers[(number + 1) % len(answers)]) for number in answers]

    def second(dataset, *_):
        wrong = dict(title_of_another(dataset))
        return [(number, [wrong[number], tokens]) for number, tokens in truth(dataset)]

    results = {
        answer.__name__: evaluator.evaluate(compute_metrics=True, predict_fn=answer)[0].result()
        for answer in (truth, title_of_another)
    }
    items, reviews = names
    assert results["truth"][items] == {"recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0}
    assert results["title_of_another"][items]["recall@10"] == 0.0
    # Targets are whole reviews, of which a long one's end is not among the tokens.
    assert 0.3 < results["truth"][reviews]["rougeLsum"] < 1.0
    assert results["title_of_another"][reviews]["rougeLsum"] < results["truth"][reviews]["rougeLsum"]
    evaluator.close()
    ranked = seqio.Evaluator(items, UserLLMFeatureConverter(), eval_split="test")  # lengths found by SeqIO
    (found,) = ranked.evaluate(compute_metrics=True, predict_fn=second)[0].result().values()
    assert found == {"recall@1": 0.0, "recall@5": 1.0, "recall@10": 1.0}
    ranked.close()


def test_recall_leaves_out_what_has_no_answer():
    assert recall_of_names(["a", "", "b"], [["c", " a "], ["x"], "b"])["recall@1"] == 0.5
    assert np.isnan(recall_of_names([""], ["a"])["recall@1"])


def test_a_wrong_name_is_answered_with_what_comes_near(make_study):
    (name,) = register_study(make_study())
    with pytest.raises(UserError, match=f"did you mean {name}"):
        find(name[:-1])


def test_a_task_of_free_text_has_no_trie(make_study):
    with pytest.raises(UserError, match="'review_generation' answers in free text"):
        make_study().answer_trie("review_generation")
