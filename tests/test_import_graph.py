"""Imports run only against the flow of the data, never in a circle, and only to libraries that setup.py declares."""

import ast
import graphlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("user_llm", "tfds_builders", "launch")

# Room → the rooms it may import besides itself, all of them above it, so that the table has no circle. `ALL_ABOVE` is
# for the public face and the commands alone. A new module belongs to a row, or gets one.
ALL_ABOVE = "all above"
_WHAT_TO_RUN = ("user_llm.launch.scales", "user_llm.launch.runs", "user_llm.launch.sweeps")
MAY_IMPORT = {
    "user_llm.errors": (),
    "user_llm.paths": ("user_llm.errors",),
    "user_llm.gguf_header": ("user_llm.errors",),
    "user_llm.files": ("user_llm.errors",),
    "user_llm.locks": ("user_llm.errors",),
    "user_llm.checksums": ("user_llm.errors", "user_llm.files"),
    "user_llm.registry": ("user_llm.errors",),
    "user_llm.arguments": ("user_llm.errors",),
    "user_llm.host": ("user_llm.errors",),
    "user_llm.quiet": (),
    "user_llm.columns": (),
    "user_llm.builders": (
        "user_llm.errors",
        "user_llm.quiet",
        "user_llm.files",
        "user_llm.paths",
        "user_llm.locks",
        "user_llm.checksums",
        "user_llm.columns",
    ),
    "tfds_builders": ("user_llm.builders",),  # what TFDS' command finds
    "user_llm.schema": (),
    "user_llm.paper": ("user_llm.errors", "user_llm.schema"),  # read by configs
    "user_llm.shipped": (),
    "user_llm.keys": ("user_llm.schema",),
    "user_llm.config": ("user_llm.errors", "user_llm.paths", "user_llm.gguf_header", "user_llm.keys"),
    "user_llm.command_line": ("user_llm.errors", "user_llm.shipped", "user_llm.keys", "user_llm.config"),
    "user_llm.data": (
        "user_llm.errors",
        "user_llm.gguf_header",
        "user_llm.files",
        "user_llm.checksums",
        "user_llm.columns",
        "user_llm.arguments",
        "user_llm.builders",
    ),
    "user_llm.models": ("user_llm.errors",),
    "user_llm.parallel": ("user_llm.errors", "user_llm.models"),
    "user_llm.checkpoints": (
        "user_llm.errors",
        "user_llm.gguf_header",
        "user_llm.files",
        "user_llm.checksums",
        "user_llm.quiet",
        "user_llm.config",
        "user_llm.models",
        "user_llm.parallel",
    ),
    "user_llm.decoding": ("user_llm.arguments", "user_llm.errors", "user_llm.models"),
    "user_llm.training": (
        "user_llm.errors",
        "user_llm.files",
        "user_llm.host",
        "user_llm.models",
        "user_llm.parallel",
        "user_llm.checkpoints",
        "user_llm.decoding",
    ),
    "user_llm.evaluation": (
        "user_llm.errors",
        "user_llm.files",
        "user_llm.data",
        "user_llm.models",
        "user_llm.parallel",
        "user_llm.training",
        "user_llm.decoding",
    ),
    "user_llm.encoders": (
        "user_llm.registry",
        "user_llm.config",
        "user_llm.data",
        "user_llm.models",
        "user_llm.training",
    ),
    "user_llm.tasks": (
        "user_llm.errors",
        "user_llm.registry",
        "user_llm.data",
        "user_llm.models",
        "user_llm.parallel",
        "user_llm.decoding",
        "user_llm.evaluation",
        "user_llm.encoders",
    ),
    "user_llm.seqio_road": (
        "user_llm.errors",
        "user_llm.files",
        "user_llm.builders",
        "user_llm.config",
        "user_llm.data",
        "user_llm.tasks",
    ),
    "user_llm.experiment": (
        "user_llm.errors",
        "user_llm.files",
        "user_llm.locks",
        "user_llm.checksums",
        "user_llm.registry",
        "user_llm.host",
        "user_llm.keys",
        "user_llm.config",
        "user_llm.data",
        "user_llm.models",
        "user_llm.parallel",
        "user_llm.checkpoints",
        "user_llm.training",
        "user_llm.decoding",
        "user_llm.evaluation",
        "user_llm.encoders",
        "user_llm.tasks",
        "user_llm.seqio_road",
    ),
    "user_llm.inspect": (
        "user_llm.arguments",
        "user_llm.errors",
        "user_llm.files",
        "user_llm.builders",
        "user_llm.config",
        "user_llm.data",
        "user_llm.models",
        "user_llm.training",
        "user_llm.parallel",
        "user_llm.checkpoints",
        "user_llm.evaluation",
        "user_llm.tasks",
        "user_llm.experiment",
    ),
    "user_llm.run": (
        "user_llm.host",
        "user_llm.config",
        "user_llm.models",
        "user_llm.parallel",
        "user_llm.evaluation",
        "user_llm.tasks",
        "user_llm.experiment",
        "user_llm.inspect",
    ),
    "user_llm.efficiency": ALL_ABOVE,  # a command
    "user_llm.events": ("user_llm.arguments", "user_llm.errors"),
    "user_llm.text_model": (
        "user_llm.arguments",
        "user_llm.errors",
        "user_llm.data",
        "user_llm.models",
        "user_llm.checkpoints",
        "user_llm.decoding",
    ),
    "user_llm.embeddings": ("user_llm.errors", "user_llm.data"),
    "user_llm.given": ("user_llm.errors", "user_llm.events", "user_llm.embeddings"),
    "user_llm.answerable": ("user_llm.errors", "user_llm.data", "user_llm.given"),
    "user_llm.asking": ("user_llm.models", "user_llm.tasks"),
    "user_llm.api": ALL_ABOVE,
    "user_llm.store": (
        "user_llm.errors",
        "user_llm.files",
        "user_llm.locks",
        "user_llm.events",
        "user_llm.embeddings",
        "user_llm.given",
        "user_llm.answerable",
        "user_llm.asking",
        "user_llm.api",
    ),
    "user_llm.bulk": ALL_ABOVE,  # commands
    "user_llm.serving": ALL_ABOVE,  # a command
    "user_llm.exported": ALL_ABOVE,  # a command
    "user_llm.main": ALL_ABOVE,  # a command
    # What to run is plain data; of the rest it reads what a config may be.
    "user_llm.launch.scales": (),
    "user_llm.launch.models": (),
    "user_llm.launch.kept": ("user_llm.config",),
    "user_llm.launch.resolve": ("user_llm.keys", "user_llm.config", "user_llm.command_line"),
    "user_llm.launch.recipe": ("user_llm.config", "user_llm.keys", "user_llm.launch.scales", "user_llm.launch.models"),
    "user_llm.launch.runs": (
        "user_llm.keys",
        "user_llm.launch.scales",
        "user_llm.launch.models",
        "user_llm.launch.recipe",
        "user_llm.launch.resolve",
    ),
    "user_llm.launch.sweeps": ("user_llm.launch.scales", "user_llm.launch.models", "user_llm.launch.runs"),
    "user_llm.launch.plan": (
        "user_llm.files",
        "user_llm.keys",
        "user_llm.config",
        "user_llm.launch.kept",
        "user_llm.launch.resolve",
        *_WHAT_TO_RUN,
    ),
    "user_llm.launch.arguments": (
        "user_llm.errors",
        "user_llm.paths",
        "user_llm.config",
        "user_llm.launch.resolve",
        "user_llm.launch.recipe",
        *_WHAT_TO_RUN,
        "user_llm.launch.plan",
    ),
    "user_llm.launch.datasets": (
        "user_llm.builders",
        "user_llm.launch.scales",
        "user_llm.launch.resolve",
        "user_llm.launch.runs",
        "user_llm.launch.arguments",
    ),
    "user_llm.launch.malloc": (),
    "user_llm.launch.board": (),
    "user_llm.launch.forecast": ("user_llm.launch.runs", "user_llm.launch.board"),
    "user_llm.launch.progress": (),
    "user_llm.launch.starts": ("user_llm.files", "user_llm.launch.kept"),
    "user_llm.launch.archive": ("user_llm.config", "user_llm.files", "user_llm.launch.kept"),
    "user_llm.launch.runner": (
        "user_llm.files",
        "user_llm.locks",
        "user_llm.launch.kept",
        "user_llm.launch.archive",
        "user_llm.launch.malloc",
        "user_llm.launch.board",
        "user_llm.launch.progress",
    ),
    "user_llm.launch.report": (
        "user_llm.errors",
        "user_llm.config",
        "user_llm.files",
        "user_llm.evaluation",
        "user_llm.launch.kept",
        "user_llm.launch.resolve",
        *_WHAT_TO_RUN,
        "user_llm.launch.plan",
        "user_llm.launch.board",
        "user_llm.launch.starts",
        "user_llm.launch.archive",
        "user_llm.launch.runner",
    ),
    "user_llm.launch.local": (
        "user_llm.errors",
        "user_llm.config",
        "user_llm.files",
        "user_llm.locks",
        "user_llm.experiment",
        "user_llm.launch.runs",
        "user_llm.launch.arguments",
        "user_llm.launch.datasets",
        "user_llm.launch.forecast",
        "user_llm.launch.plan",
        "user_llm.launch.starts",
        "user_llm.launch.runner",
        "user_llm.launch.report",
    ),
    "user_llm.launch": (),
    # Where runs are started from the clone; XManager's launcher runs without JAX.
    "launch.xm_launch": (
        "user_llm.errors",
        "user_llm.config",
        "user_llm.launch.runs",
        "user_llm.launch.arguments",
        "user_llm.launch.malloc",
    ),
    "launch": ("user_llm.launch.report", "user_llm.launch.local"),
    "user_llm": ALL_ABOVE,  # the package itself: its public face
    "user_llm.__main__": ("user_llm",),  # the command of that name, which runs the others
}

# Read them, don't build on them (docs/architecture.md); and what belongs to tests and launchers only.
NEVER = {"gemma", "kauldron", "peft", "recml", "t5x", "torch", "transformers", "tunix"}
# Library → the one module that imports it, in an environment of its own (launch/requirements.txt and
# tfds_builders/requirements.txt).
APART = {"xmanager": {"launch.xm_launch"}, "apache_beam": {"user_llm.builders.beam.runner"}}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path) -> dict[str, Path]:
    """Module name → file, of all modules below `root` in our packages."""
    files = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {module_name(path, root): path for path in files}


def imported_names(module: str, path: Path) -> Iterator[str]:
    """Dotted names that `module` imports, anywhere in the file; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            prefix = base[: len(base) - node.level + 1] if node.level else []
            yield from (".".join([*prefix, *filter(None, [node.module]), alias.name]) for alias in node.names)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module → our modules it imports. A package that Python imports on the way to its module is not counted."""
    files = sources(root)
    graph = {}
    for module, path in files.items():
        names = list(imported_names(module, path))
        targets = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = {target for target in targets if target in files and target != module}
    return graph


def room(module: str) -> str | None:
    """The row of the table a module belongs to."""
    if module in MAY_IMPORT:
        return module
    rows = [row for row in MAY_IMPORT if module.startswith(f"{row}.") and row != "user_llm"]
    return rows[0] if rows else None


def allowed(importer: str, imported: str) -> bool:
    rows = list(MAY_IMPORT)
    above = rows[: rows.index(importer)] if MAY_IMPORT[importer] == ALL_ABOVE else MAY_IMPORT[importer]
    return importer == imported or imported in above


def violations(graph: dict[str, set[str]]) -> list[str]:
    """One line for each module without a room, import against the arrow, and circle."""
    found = [f"{module} has no row in MAY_IMPORT" for module in graph if room(module) is None]
    for module, targets in graph.items():
        for target in sorted(targets):
            if room(module) and room(target) and not allowed(room(module), room(target)):
                found.append(f"{module} imports {target}: {room(module)} may not import {room(target)}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' ◄ '.join(error.args[1])}")
    return found


def test_imports_run_against_the_arrow_and_never_in_a_circle():
    graph = import_graph(ROOT)
    assert len(graph) > 20, "found hardly any module: the walk is broken"
    assert not violations(graph), "\n".join(violations(graph))


def test_only_commands_and_the_public_face_may_import_everything():
    assert [row for row, targets in MAY_IMPORT.items() if targets == ALL_ABOVE] == [
        *("user_llm.efficiency", "user_llm.api", "user_llm.bulk", "user_llm.serving", "user_llm.exported"),
        *("user_llm.main", "user_llm"),
    ]


def test_every_permission_is_used():
    used = {(room(module), room(target)) for module, targets in import_graph(ROOT).items() for target in targets}
    for row, targets in MAY_IMPORT.items():
        unused = [target for target in targets if targets != ALL_ABOVE and (row, target) not in used]
        assert not unused, f"{row} never imports {unused}"


def test_the_table_itself_has_no_circle():
    rows = list(MAY_IMPORT)
    for index, (row, targets) in enumerate(MAY_IMPORT.items()):
        assert targets == ALL_ABOVE or set(targets) <= set(rows[:index]), f"{row} names a room below it"


def third_party(root: Path) -> dict[str, set[str]]:
    """Top-level name of each imported library → the modules that import it."""
    users: dict[str, set[str]] = {}
    for module, path in sources(root).items():
        for name in imported_names(module, path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top not in PACKAGES:
                users.setdefault(top, set()).add(module)
    return users


def test_every_library_is_declared_and_none_is_unwanted():
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    lists = {node.targets[0].id: node.value for node in setup.body if isinstance(node, ast.Assign)}
    normalise = lambda name: re.sub(r"[-_.]+", "-", name).lower()  # noqa: E731
    declared = {
        normalise(re.match(r"[\w.-]+", requirement)[0])
        for name in ("INSTALL_REQUIRES", "HUB_REQUIRES", "REDIS_REQUIRES", "SERVE_REQUIRES")
        for requirement in ast.literal_eval(lists[name])
    }
    distributions = importlib.metadata.packages_distributions()
    for library, modules in third_party(ROOT).items():
        assert library not in NEVER, f"{sorted(modules)} import {library}"
        if library in APART:
            assert modules == APART[library]
            continue
        providers = {normalise(name) for name in distributions.get(library, [library])}
        assert providers & declared, f"{library}, which {sorted(modules)} import, is not declared in setup.py"


@pytest.fixture
def tree(tmp_path):
    """Writes a small source tree from module name → source, and returns what is wrong with it."""

    def check(**files: str) -> list[str]:
        for name, source in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return violations(import_graph(tmp_path))

    return check


@pytest.mark.parametrize(
    "statement",
    [
        "import user_llm.training.loop",
        "from user_llm.training import loop",
        "from user_llm.training.loop import train",
        "from ..training.loop import train",
        "def late():\n    from user_llm.training.loop import train",
    ],
)
def test_a_backward_import_is_found_in_every_form(tree, statement):
    wrong = tree(user_llm__models__stack=statement, user_llm__training__loop="def train(): ...")
    assert wrong == [
        "user_llm.models.stack imports user_llm.training.loop: user_llm.models may not import user_llm.training"
    ]


def test_rooms_side_by_side_stay_apart(tree):
    wrong = tree(user_llm__models__stack="import user_llm.data.windows", user_llm__data__windows="")
    assert len(wrong) == 1


def test_a_circle_inside_a_room_is_found(tree):
    wrong = tree(user_llm__models__a="from user_llm.models import b", user_llm__models__b="import user_llm.models.a")
    assert len(wrong) == 1
    assert wrong[0].startswith("circle: ")


def test_a_module_without_a_place_is_found(tree):
    assert tree(user_llm__helpers="") == ["user_llm.helpers has no row in MAY_IMPORT"]


def test_imports_along_the_arrow_pass(tree):
    wrong = tree(
        user_llm__training__loop="from user_llm.models.stack import run\nimport numpy",
        user_llm__models__stack="def run(): ...",
        user_llm__main="import user_llm.training.loop",
    )
    assert wrong == []
