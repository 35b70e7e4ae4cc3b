"""The plan of a run: its counts are those of the models, its bytes those a device would hold."""

import math
import re

import pytest

from user_llm.command_line import load
from user_llm.data.timelines import load_timelines
from user_llm.inspect.dry_run import assembly_of, dataset_sizes, print_dry_run
from user_llm.models import parameters
from user_llm.parallel.mesh import make_mesh
from user_llm.parallel.rules import parameter_shardings


def changed(**values):
    config = load("ml20m")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return config


def printed(config, capsys):
    """{stage: {component: (parameters, that train, MiB of parameters, of gradients, of the optimizer)}}"""
    print_dry_run(config)
    stages, rows = {}, {}
    for line in capsys.readouterr().out.splitlines():
        if title := re.search(r"ml20m: stage (\w+),.* mesh", line):
            rows = stages.setdefault(title[1], {})
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells and re.fullmatch(r"[\d,]+", cells[1]):
            numbers = [cell.replace(",", "") for cell in cells[1:]]
            rows[cells[0]] = (*map(int, numbers[:2]), *map(float, numbers[2:]))
    return stages


def held(build, sizes):
    """{path: (parameters, of them on one device)}, as a mesh of this process' 8 devices cuts them."""
    model = parameters.abstract(build)
    shapes = parameters.split(model)[1]
    shardings = parameter_shardings(shapes, parameters.logical_axes(model), make_mesh(sizes))
    return {path: (s.size, math.prod(shardings[path].shard_shape(s.shape))) for path, s in shapes.items()}


SIZES = {
    "data": {"data": -1, "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 1, "fsdp": 8, "tensor": 1},
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_experiment_weighs_what_its_models_weigh(name, capsys):
    sizes = SIZES[name]
    config = changed(**{f"compute__mesh__{axis}": size for axis, size in sizes.items()})
    stages, assembly = printed(config, capsys), assembly_of(config)
    assert list(stages) == ["llm", "encoder", "user_llm"]
    for stage, build in [("llm", assembly.language_model), ("encoder", assembly.encoder)]:
        whole, here = map(sum, zip(*held(build, sizes).values(), strict=True))
        mib = here * 4 / 2**20
        expected = (whole, whole, *(pytest.approx(value, abs=0.051) for value in (mib, mib, 2 * mib)))
        assert stages[stage] == {stage: expected, "total": expected}
    cut = held(assembly.user_llm, sizes)
    assert stages["user_llm"].keys() == {"encoder", "connector", "language_model", "total"}
    for component, row in stages["user_llm"].items():
        mine = {path: size for path, size in cut.items() if component in (path.split("/")[0], "total")}
        assert row[0] == sum(size for size, _ in mine.values())
        assert row[1] == row[0]
        assert row[2] == pytest.approx(sum(here for _, here in mine.values()) * 4 / 2**20, abs=0.051)


def test_the_papers_encoder_has_the_parameters_of_its_formula(capsys):
    items, categories, ratings, events, width, hidden = 27_278, 20, 10, 50, 128, 512
    tables = (items + categories + ratings + 3 + events) * width
    layer = 4 * width**2 + 2 * width * hidden + 2 * width
    expected = tables + 3 * width**2 + 3 * width**2 + 6 * layer + 2 * width  # projection, heads, layers, norms
    assert printed(load("ml20m"), capsys)["encoder"]["total"][0] == expected


def test_eight_slices_hold_an_eighth_each(capsys):
    one, eight = (printed(changed(compute__mesh__fsdp=n, compute__mesh__data=1), capsys) for n in (1, 8))
    for stage in one:
        assert eight[stage]["total"][:2] == one[stage]["total"][:2]
        for whole, part in zip(one[stage]["total"][2:], eight[stage]["total"][2:], strict=True):
            assert whole / 8 <= part + 0.05 < whole / 8 * 1.02 + 0.1  # norms stay whole


def test_frozen_parameters_are_counted_in_their_dtype_and_need_nothing_else(capsys):
    rows = printed(changed(strategy="proj", compute__frozen_dtype="bfloat16", compute__mesh__data=1), capsys)[
        "user_llm"
    ]
    for component in ("encoder", "language_model"):
        size = rows[component][0]
        assert rows[component][1:] == (0, pytest.approx(size * 2 / 2**20, abs=0.051), 0, 0)
    size = rows["connector"][0]
    mib = size * 4 / 2**20
    assert rows["connector"] == (size, size, *(pytest.approx(value, abs=0.051) for value in (mib, mib, 2 * mib)))


def test_a_downloaded_llm_is_not_trained_and_has_its_own_dims(shared_dir, capsys):
    """Stories260K: 512 pieces, 5 layers of width 64 and hidden 172, 8 heads over 4 of keys; tied."""
    folder = str(shared_dir / "llm" / "stories260K")
    stages = printed(changed(llm__checkpoint=folder, integration__every=1), capsys)
    assert list(stages) == ["encoder", "user_llm"]
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172 + 2 * 64
    assert stages["user_llm"]["language_model"][0] == 512 * 64 + 5 * layer + 64
    trimmed = changed(llm__checkpoint=folder, integration__every=1, llm__trim_vocabulary=True)
    print_dry_run(trimmed)
    assert "trim_vocabulary keeps is known with the data; this plan keeps all" in capsys.readouterr().out
    assert printed(trimmed, capsys) == stages


def test_large_numbers_are_not_cut(capsys):
    """A table of 10 billion parameters, on a terminal of 80 columns as in a log."""
    config = changed(llm__vocabulary_size=20_000_000, compute__mesh__data=1)
    language_model = printed(config, capsys)["user_llm"]["language_model"]
    assert language_model[0] == (20_000_000 - 8192) * 512 + 29_368_832


def test_a_dataset_that_is_not_published_is_counted_where_it_is_built(tmp_path, capsys):
    data = {"data__dataset": "amazon_reviews/simulated", "data__data_dir": str(tmp_path)}
    config = changed(**data)
    print_dry_run(config)
    assert "amazon_reviews/simulated is not built yet" in capsys.readouterr().out
    simulated = dict(num_users=30, num_items=60, mean_events=25, min_events=21)
    table = load_timelines("amazon_reviews/simulated", data_dir=tmp_path, simulated=simulated)
    print_dry_run(config)
    assert "not built" not in capsys.readouterr().out
    assert dataset_sizes(config) == (
        table.catalogue.num_items,
        len(table.catalogue.category_names) - 1,
        len(table.rating_names) - 1,
    )


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_a_table_moved_by_its_rows_needs_a_float_for_each(name, capsys):
    sizes = SIZES[name]
    mesh = {f"compute__mesh__{axis}": size for axis, size in sizes.items()}
    config = changed(**mesh, stages=("encoder",), data__dataset="movielens/25m", training__encoder__tables="rowwise")
    config.name = "ml20m"
    parts = held(assembly_of(config).encoder, sizes)
    rows, others = 62_424, sum(here for path, (_, here) in parts.items() if path != "embedding/item_VU")
    expected = (4 * rows // sizes["tensor"] + 8 * others) / 2**20
    assert printed(config, capsys)["encoder"]["total"][-1] == pytest.approx(expected, abs=0.051)


def test_gradients_of_rows_that_are_gathered_are_as_many(capsys):
    """Of a sampled softmax: two steps' worth of negatives, histories of 50 and labels. With more, the whole table's."""
    sampled = dict(training__encoder__tables="rowwise", encoder__softmax="sampled", encoder__negatives=100)
    data = dict(stages=("encoder",), data__dataset="movielens/25m", training__encoder__accumulate=2)
    for batch, gathered in ((64, 64 * 51 + 200), (32_768, 62_424)):
        config = changed(**data, **sampled, training__encoder__batch_size=batch)
        config.name = "ml20m"
        held, gradients = printed(config, capsys)["encoder"]["total"][2:4]
        assert held - gradients == pytest.approx((62_424 - gathered) * 128 * 4 / 2**20, abs=0.11)


def test_a_large_table_is_counted_as_it_is_cut_by_its_rows(capsys):
    """Of as many rows as its own are rounded up to each of eight devices holds an eighth, whatever the catalogue."""
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    of_mesh = {f"compute__mesh__{axis}": size for axis, size in mesh.items()}
    data = dict(stages=("encoder",), data__dataset="movielens/simulated", training__encoder__tables="rowwise")
    for items in (799_999, 800_000):
        config = changed(**of_mesh, **data, data__simulated__num_items=items)
        config.name = "ml20m"
        found = printed(config, capsys)["encoder"]["total"][2:]
        cut = held(assembly_of(config).encoder, mesh)
        assert cut["embedding/item_VU"] == (800_256 * 128, 800_256 * 128 / 8)
        assert found[0] == pytest.approx(sum(here for _, here in cut.values()) * 4 / 2**20, abs=0.051)


@pytest.mark.parametrize(("softmax", "items"), [("full", 27_279), ("sampled", 8192)])
def test_the_chunk_of_logits_is_counted(softmax, items, capsys):
    """Logits and their exponentials, float32, of as many rows as a chunk has: `encoder.chunk_rows`, or fewer."""
    print_dry_run(changed(encoder__chunk_rows=1024, encoder__softmax=softmax, training__llm__accumulate=1024))
    printed = " ".join(capsys.readouterr().out.split())
    said = [float(mib.replace(",", "")) for mib in re.findall(r"logits: ([\d.,]+) MiB over all devices", printed)]
    # The llm's microbatch is one text, of at most 511 tokens to predict.
    expected = [8 * rows * classes / 2**20 for rows, classes in ((511, 8192), (1024, items), (1024, 8192))]
    assert said == [pytest.approx(mib, rel=0.01) for mib in expected]
    assert printed.count("--compile_for has what a step takes") == 3
