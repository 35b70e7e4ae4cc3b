"""A run with fused answers and cold items, from its config to what is asked of it when it is finished."""

import concurrent.futures
import csv
import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections.config_flags import config_path

import user_llm
from user_llm.bulk import embed, parts
from user_llm.bulk import recommend as bulk
from user_llm.errors import UserError
from user_llm.evaluation.fusion import WEIGHTS
from user_llm.experiment import experiment
from user_llm.experiment.validation import validate
from user_llm.experiment.workdir import read_config
from user_llm.exported import export, runtime
from user_llm.host import Host
from user_llm.inspect import diagnosis
from user_llm.parallel.mesh import one_device
from user_llm.run import run
from user_llm.tasks.cold_items import AMONG_ALL, AMONG_COLD
from user_llm.tasks.rows import ENCODER, FUSED, LLM, RERANKED, TWO_ENCODERS, USER_LLM

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def configured(folder, **overrides):
    config = tiny.get_config()
    for key, value in {"data.data_dir": str(folder / "data"), **overrides}.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run with fused answers, and its results."""
    folder = tmp_path_factory.mktemp("fused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "make_mesh", lambda sizes: one_device())
        cold = {"evaluation.cold_share": 0.1}
        other = configured(folder, stages=("encoder",), seed=1, **cold)
        run(other, folder / "second", Host(tensorboard=False))
        options = {"evaluation.answers": "fused", "evaluation.max_fit": 20, "stages": ("encoder", "user_llm")}
        config = configured(folder, **options, **cold, **{"evaluation.second_encoder": str(folder / "second")})
        results = run(config, folder / "run", Host(tensorboard=False))
    shutil.rmtree(folder / "second")  # answers need it no more
    return folder / "run", results


def test_the_table_has_the_fused_row_and_its_controls(finished):
    workdir, results = finished
    protocol = next(iter(results["protocols"].values()))
    assert {ENCODER, USER_LLM, FUSED, RERANKED, TWO_ENCODERS} <= {*protocol["rows"]}
    assert {f"{FUSED} - {ENCODER}", f"{FUSED} - {TWO_ENCODERS}"} <= {*protocol["comparisons"]}
    kept = json.loads((workdir / "fusion" / "next_item.json").read_text())
    assert kept["weight"] in WEIGHTS
    assert set(kept["tried"]) == {f"{weight:g}" for weight in WEIGHTS}


def test_cold_items_have_tables_of_their_own_and_are_learnt_of_nowhere(finished):
    workdir, results = finished
    among_all, among_cold = (results["protocols"][name] for name in (AMONG_ALL, AMONG_COLD))
    assert among_all["users"] == among_cold["users"] > 10
    for protocol in (among_all, among_cold):
        assert {ENCODER, LLM, USER_LLM, FUSED} == {*protocol["rows"]}
    # Of six items some ten answers are all.
    assert among_cold["rows"][USER_LLM]["recall@10"]["value"] == 1
    made = experiment.Experiment(read_config(workdir), workdir, one_device())
    assert made.cold_items.sum() == 6
    assert not made.cold_items[made.table.item].any()
    assert made.cold_items[made.all_events.item].sum() > 10
    titles = [title for title, cold in zip(made.catalogue.titles, made.cold_items, strict=True) if cold]
    assert not [text for text in made.documents if text.startswith(tuple(titles))]


def test_a_finished_run_is_taken_apart(finished, tmp_path, capsys):
    assert diagnosis.main([f"--workdir={finished[0]}", "--users=20", f"--output={tmp_path / 'found.json'}"]) == 0
    assert "choice among titles" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["users"] == 20
    parts = found["losses"]
    assert parts["whole title"] == pytest.approx(parts["outside of the catalogue"] + parts["choice among titles"])
    assert parts["of that where one token alone may follow"] <= parts["outside of the catalogue"]
    assert found["tokens"][0]["titles"] == 20
    assert set(found["ranks"]) == {"beams", "every title", ENCODER}
    assert diagnosis.main([f"--workdir={tmp_path}"]) == 1


@pytest.mark.parametrize("answers", ["beams", "fused"])
def test_items_that_came_later_are_answered_by_their_titles(finished, answers):
    model = user_llm.load(finished[0])
    events = [{"item": title, "rating": 4.0} for title in model.catalogue.titles[3:9]]
    before = {answer.text: answer.score for answer in model.recommend(events, k=100, answers=answers)}
    later = [{"title": "The Crimson Harbour (2031)"}, {"title": "A Night of Glass (2032)"}]
    found = {answer.text: answer.score for answer in model.recommend(events, k=100, answers=answers, extra_items=later)}
    assert {*found} == {*before, *(item["title"] for item in later)}
    if answers == "beams":  # nobody else's probability is touched
        assert {text: found[text] for text in before} == pytest.approx(before, abs=1e-4)
    again = {answer.text: answer.score for answer in model.recommend(events, k=100, answers=answers)}
    assert again == before
    for wrong in ([{"title": " "}], [{"title": "A", "genre": "B"}], [later[0], later[0]], ["A"]):
        with pytest.raises(UserError, match=f"extra item {len(wrong) - 1}: "):
            model.recommend(events, extra_items=wrong)
    with pytest.raises(UserError, match="is a title of the catalogue"):
        model.recommend(events, extra_items=[{"title": model.catalogue.titles[1]}])


def test_many_users_get_what_each_gets_alone(finished):
    model = user_llm.load(finished[0])
    titles = model.catalogue.titles
    users = [[{"item": title, "rating": 3.0} for title in titles[start : start + 4]] for start in range(1, 12)]
    together = model.recommend(users, k=4)
    for events, answers in zip(users, together, strict=True):
        alone = model.recommend(events, k=4)
        assert [answer.text for answer in answers] == [answer.text for answer in alone]
        assert [answer.score for answer in answers] == pytest.approx([answer.score for answer in alone], abs=1e-4)
    assert len(model.recommend(users * 6, k=1)) == 66  # more than a batch
    with pytest.raises(UserError, match="user 1, event 0: 'Nothing' is no title"):
        model.recommend([users[0], [{"item": "Nothing", "rating": 3.0}]])
    with pytest.raises(UserError, match="user 1, events must be a list of at least one event"):
        model.recommend([users[0], []])
    with pytest.raises(UserError, match="now must be one for each of the 2 users"):
        model.recommend(users[:2], now=[1.0])


@pytest.fixture(scope="module")
def asked(finished):
    """The run's model, and events of eleven users."""
    model = user_llm.load(finished[0])
    titles = model.catalogue.titles
    return model, [[{"item": title, "rating": 3.0} for title in titles[start : start + 4]] for start in range(1, 12)]


def titles_and_scores(answers):
    return [[answer.text for answer in of_user] for of_user in answers], [a.score for of in answers for a in of]


@pytest.mark.parametrize("answers", ["beams", "exact", "fused", "encoder"])
def test_users_that_are_kept_are_answered_as_their_events_are(asked, answers):
    model, users = asked
    kept = model.encode(users)
    assert len(kept) == 11
    for found in (model.recommend(kept, 4, answers=answers), list(model.recommend(iter(users), 4, answers=answers))):
        titles, scores = titles_and_scores(found)
        wanted_titles, wanted_scores = titles_and_scores(model.recommend(users, 4, answers=answers))
        assert titles == wanted_titles
        np.testing.assert_array_equal(scores, wanted_scores)  # the same programs
    for part in (kept[[5, 2]], kept[2], kept[np.arange(11) == 2], kept[2:3]):
        np.testing.assert_array_equal(part.items[-1], kept.items[2])
        assert len(part) in (1, 2)
    some = kept[[5, 2]]
    titles, scores = titles_and_scores(model.recommend(some, 4, answers=answers))
    assert titles == [wanted_titles[5], wanted_titles[2]]
    assert user_llm.UserEmbeddings.join([kept[:3], kept[3:]]).embeddings.tolist() == kept.embeddings.tolist()


def test_answers_of_the_encoder_are_its_ranking(finished, asked):
    model, users = asked
    encoder = model._stages["encoder"].module()
    read = model.events.read(users, [None] * len(users), [""] * len(users))
    history = {name: read[f"history/{name}"] for name in ("item", "rating")}
    logits = np.array(encoder.query_logits(encoder.query(history, history["item"] > 0)), np.float64)
    names = model.catalogue.titles
    for row, events, found in zip(logits, users, model.recommend(users, 3, answers="encoder"), strict=True):
        row[[names.index(event["item"]) for event in events]] = -np.inf
        assert [answer.text for answer in found] == [names[item] for item in np.argsort(-row, kind="stable")[:3]]


def test_what_may_be_answered_is_chosen(asked):
    model, users = asked
    titles, names = model.catalogue.titles, model.catalogue.category_names
    everything = model.recommend(users[:2], 100)
    best = [of_user[0].text for of_user in everything]
    found = model.recommend(users[:2], 100, exclude=[[best[0]], [best[1]]])
    assert [titles_and_scores([answers])[0][0] for answers in found] == [
        [answer.text for answer in of_user[1:]] for of_user in everything
    ]
    both = model.recommend(users[:2], 100, exclude=best)
    assert not {*best} & {answer.text for of_user in both for answer in of_user}
    allowed = titles[20:30]
    for answers in ("beams", "exact", "fused", "encoder"):
        found = model.recommend(users[0], 100, allow=allowed, answers=answers)
        assert {answer.text for answer in found} == set(allowed)
        of_all = {a.text: a.score for a in model.recommend(users[0], 100, answers=answers)}
        if answers != "fused":  # where cold items tie
            assert [answer.text for answer in found] == sorted(allowed, key=of_all.__getitem__, reverse=True)
    category = names[1]
    of_category = {
        title for title, ids in zip(titles, model.catalogue.item_categories, strict=True) if 1 in ids.tolist()
    }
    found = model.recommend(users[0], 100, category=category)
    assert {answer.text for answer in found} == of_category - {event["item"] for event in users[0]}
    later = [{"title": "The Crimson Harbour (2031)"}]
    found = model.recommend(users[0], 5, allow=[later[0]["title"], titles[30]], extra_items=later)
    assert {answer.text for answer in found} == {later[0]["title"], titles[30]}


def test_events_that_are_not_known_are_left_out_and_counted(asked):
    model, users = asked
    before = model.events.skipped
    strange = [{"item": "Nothing", "rating": 3.0}, {"item": users[0][0]["item"], "rating": 77.0}]
    found = model.recommend([[strange[0], *users[0], strange[1]], strange], 3, unknown="skip")
    assert titles_and_scores(found[:1])[0] == titles_and_scores([model.recommend(users[0], 3)])[0]
    assert found[1] == []
    assert model.events.skipped == before + 4
    with pytest.raises(UserError, match="user 1, event 0: expected"):
        model.recommend([users[0], [5]], unknown="skip")


def test_any_text_may_be_asked_of_users(asked):
    model, users = asked
    texts = model.generate(users[:3], "The user's next", 4)
    assert texts == model.generate(model.encode(users[:3]), "The user's next", 4)
    assert texts[1] == model.generate(users[1], "The user's next", 4)
    module = model.contextualised.module()
    (words,) = model.tokenizer.encode_batch(["The user's next"])
    read = model.events.read(users[:1], [None], [""])
    history = {name: read[f"history/{name}"] for name in ("item", "rating")}
    tokens = [model.tokenizer.bos_id, *words]
    for _ in range(4):
        ids = np.array([tokens], np.int32)
        mask = np.tril(np.ones((1, ids.shape[1], ids.shape[1]), bool))
        hidden, _ = module(
            ids, np.arange(ids.shape[1])[None], mask, context=module.encode(history, history["item"] > 0)
        )
        tokens.append(int(np.argmax(module.logits(hidden)[0, -1])))
        if tokens[-1] == model.tokenizer.eos_id:
            break
    assert texts[0].strip()
    assert (model.tokenizer.decode_batch(np.array([tokens]))[0]).endswith(texts[0].strip())
    with pytest.raises(UserError, match="shorten the prompt, or lower max_new_tokens"):
        model.generate(users[0], "a", 100_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "both"}, "answers must be one of beams, exact, fused, encoder, got 'both'"),
        ({"unknown": "drop"}, "unknown must be 'error' or 'skip', got 'drop'"),
        ({"exclude": "Heat"}, "exclude must be a list of titles, got 'Heat'"),
        ({"exclude": ["Nothing"]}, "exclude: 'Nothing' is no title of the catalogue"),
        ({"exclude": [["Nothing"]]}, "exclude of user 0: 'Nothing' is no title"),
        ({"exclude": [[], []]}, "exclude must be one for each of the 11 users"),
        ({"allow": "Heat"}, "allow must be a list of titles"),
        ({"allow": []}, "no title is left that may be answered"),
        ({"category": "Nothing"}, "category must be one of "),
    ],
)
def test_what_cannot_be_chosen_is_told(asked, options, message):
    model, users = asked
    with pytest.raises(UserError, match=message):
        model.recommend(users, **options)


def test_embeddings_of_another_encoder_are_refused(asked):
    model, users = asked
    kept = model.encode(users[:2], query=False)
    for other, what in (({"encoder": "f" * 64}, "encoder"), ({"catalogue": "f" * 64}, "catalogue")):
        with pytest.raises(UserError, match=f"made with another {what}"):
            model.recommend(dataclasses.replace(kept, **other))
    with pytest.raises(UserError, match="encoded without what the encoder asks for"):
        model.recommend(kept, answers="fused")
    with pytest.raises(UserError, match="now= was read when the users were encoded"):
        model.recommend(kept, now=3.0)


def test_threads_may_share_a_model(asked):
    model, users = asked
    wanted = [titles_and_scores([answers])[0] for answers in model.recommend(users, 5)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda user: titles_and_scores([model.recommend(users, 5)[user]])[0], range(8)))
    assert found == wanted[:8]


@pytest.fixture
def events(finished, tmp_path):
    """A CSV file of users' events in no order, and what each user has of it, oldest first."""
    model = user_llm.load(finished[0])
    random, rows, users = np.random.default_rng(0), [], {}
    for user in range(20):
        items = random.choice(np.arange(1, 50), size=random.integers(1, 40), replace=False)
        users[f"u{user}"] = [{"item": model.catalogue.titles[item], "rating": 4.0} for item in items]
        rows += [(f"u{user}", model.catalogue.raw_ids[item], 1000 + n, 4.0) for n, item in enumerate(items)]
    rows = [rows[index] for index in random.permutation(len(rows))]
    with (tmp_path / "events.csv").open("w") as file:
        csv.writer(file).writerows([("user", "item", "timestamp", "rating"), *rows])
    return tmp_path / "events.csv", users, model


def command(finished, file, out, *more):
    columns = ["--columns", "user=user", "item=item", "timestamp=timestamp", "rating=rating"]
    return bulk.main([f"--workdir={finished[0]}", "--users", str(file), *columns, f"--out={out}", "--k=3", *more])


@pytest.mark.parametrize("answers", ["beams", "fused"])
def test_users_of_a_file_get_what_they_get_one_by_one(finished, events, tmp_path, answers):
    file, users, model = events
    assert command(finished, file, tmp_path / "out.parquet", f"--answers={answers}") == 0
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["user"] for row in found[::3]] == sorted(users)
    expected = model.recommend([users[user] for user in sorted(users)], k=3, answers=answers)
    assert [row["title"] for row in found] == [answer.text for of_user in expected for answer in of_user]
    assert [row["rank"] for row in found] == [1, 2, 3] * len(users)
    ids = dict(zip(model.catalogue.titles, model.catalogue.raw_ids, strict=True))
    assert all(row["item"] == ids[row["title"]] for row in found)


def test_a_file_s_answers_go_on_where_they_were_stopped(finished, events, tmp_path, monkeypatch):
    file, _, _ = events
    assert command(finished, file, tmp_path / "whole.parquet") == 0
    monkeypatch.setattr(parts, "PART", 8)
    monkeypatch.setattr(bulk, "BATCHES", (1, 8))
    answers, calls = bulk._answers, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        yield from answers(*arguments)

    monkeypatch.setattr(bulk, "_answers", stopped)
    with pytest.raises(KeyboardInterrupt):
        command(finished, file, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    assert command(finished, file, tmp_path / "out.parquet", "--answers=fused") == 1  # another call's parts
    assert command(finished, file, tmp_path / "out.parquet") == 0
    assert len(calls) == 4  # of three parts the first was there
    found, whole = (pq.read_table(tmp_path / name) for name in ("out.parquet", "whole.parquet"))
    assert found.drop(["score"]) == whole.drop(["score"])
    np.testing.assert_allclose(found["score"].to_numpy(), whole["score"].to_numpy(), atol=1e-4)  # of batches of 8, 64
    assert not (tmp_path / "out.parquet.parts").exists()


def test_users_of_a_store_get_what_those_of_the_file_get(finished, events, tmp_path):
    file, users, model = events
    named = [f"--workdir={finished[0]}", "--users", str(file), "--columns", "user=user", "item=item"]
    named += ["timestamp=timestamp", "rating=rating"]
    assert embed.main([*named, f"--store={tmp_path / 'store'}"]) == 0
    asked = [f"--workdir={finished[0]}", f"--store={tmp_path / 'store'}", "--k=3", "--answers=fused"]
    assert bulk.main([*asked, f"--out={tmp_path / 'of_store.parquet'}"]) == 0
    assert command(finished, file, tmp_path / "of_file.parquet", "--answers=fused") == 0
    of_store, of_file = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("of_store", "of_file"))
    assert of_store == of_file
    assert embed.main([*named, f"--out={tmp_path / 'vectors.parquet'}"]) == 0
    rows = pq.read_table(tmp_path / "vectors.parquet").to_pylist()
    kept = model.encode([users[row["user"]] for row in rows])
    assert len(rows) == len(users)
    for row, vectors, mask in zip(rows, kept.embeddings, kept.mask, strict=True):
        np.testing.assert_allclose(row["embeddings"], vectors[mask], atol=1e-5)


def test_an_export_answers_as_the_run_does(finished, asked, tmp_path, capsys):
    model, users = asked
    folder = tmp_path / "exported"
    assert export.main([f"--workdir={finished[0]}", f"--out={folder}", "--batches=1", "--platforms=cpu"]) == 0
    assert "runtime.py says how to use it" in capsys.readouterr().out
    run = runtime.Recommender(folder)
    wanted = model.recommend(users[0], 5)
    assert [title for title, _ in run.recommend(users[0], 5)] == [answer.text for answer in wanted]
    assert run.recommend([]) == []
    for wrong, message in (({"users": [[]]}, "user 0 has no events"), ({"users": users, "now": 3.0}, "reads no now=")):
        with pytest.raises(ValueError, match=message):
            run.recommend(**wrong)


def test_a_command_without_users_is_told(finished, tmp_path, capsys):
    out, run = f"--out={tmp_path / 'out.parquet'}", f"--workdir={finished[0]}"
    assert bulk.main([run, out]) == 1
    assert "name either files of events with --users, or a store" in capsys.readouterr().err
    assert bulk.main([run, out, f"--store={tmp_path / 'nobody'}"]) == 1
    assert "is no store: user-llm embed" in capsys.readouterr().err
    for command, options in (
        (bulk, ["--store=a", "--by=title"]),
        (embed, ["--users=a", "--out=b", "--dtype=bfloat16"]),
    ):
        with pytest.raises(SystemExit):
            command.main([run, out, *options])
        assert "means nothing beside" in capsys.readouterr().err
    assert embed.main([run, "--users", "events.csv"]) == 1
    assert "name either a file with --out, or a store" in capsys.readouterr().err


def test_events_that_the_run_does_not_know_are_told(finished, events, tmp_path, capsys):
    file, users, _ = events
    with file.open("a") as opened:
        opened.write("u3,no such item,2000,4.0\nu3,,2001,4.0\nu4,no such item,2002,9.5\n")
    assert command(finished, file, tmp_path / "out.parquet") == 1
    assert "2 events are of items or ratings that the run does not know" in capsys.readouterr().err
    assert command(finished, file, tmp_path / "out.parquet", "--unknown=skip") == 1
    assert "1 rows are malformed" in capsys.readouterr().err
    assert command(finished, file, tmp_path / "out.parquet", "--unknown=skip", "--max_malformed=0.1") == 0
    assert len(pq.read_table(tmp_path / "out.parquet")) == 3 * len(users)
    assert command(finished, file, tmp_path / "out.parquet", "--k=0") == 1
    assert "--k must be a whole number of at least 1, got 0" in capsys.readouterr().err
    assert command(finished, file, tmp_path / "out.parquet", "--now=2e9") == 1
    assert "reads no time of the answer: leave --now= out" in capsys.readouterr().err


def test_many_answers_are_the_beams_in_another_way(finished):
    model = user_llm.load(finished[0])
    events = [{"item": title, "rating": 4.0} for title in model.catalogue.titles[3:9]]
    beams = model.recommend(events, k=100, answers="fused")
    exact = model.recommend(events, k=101, answers="fused")
    assert {answer.text for answer in beams} == {answer.text for answer in exact}  # of items unknown to it many tie
    assert [answer.score for answer in beams] == pytest.approx([answer.score for answer in exact], abs=1e-3)
    with pytest.raises(UserError, match="answers must be one of beams, exact, fused, encoder, got 'both'"):
        model.recommend(events, answers="both")
