"""Sphinx: `make docs` builds this folder into `docs/_build/html`. Every warning fails, a dead link included."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the modules of this clone, wherever another one is installed

import user_llm  # noqa: E402 - the one of this clone

project = "User-LLM"
author = "the User-LLM contributors"
release = user_llm.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results/*/notes.md"]  # what a report tells its readers stands in the report
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "User-LLM"
html_show_copyright = False

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"  # a notebook's output is what this build has run
nb_execution_timeout = 600
nb_execution_raise_on_error = True

default_role = "code"  # docstrings quote code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # one line may name several

# Types in signatures that the API reference leaves out: those of libraries, and type variables.
nitpick_ignore = [
    ("py:class", "user_llm.decoding.prefill.Context"),
    ("py:class", "user_llm.evaluation.evaluator.AnySource"),
    ("py:class", "user_llm.registry.Entry"),
]
nitpick_ignore_regex = [(r"py:.*", r"(?!user_llm).*")]
