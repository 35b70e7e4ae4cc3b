"""Measures User-LLM against a text prompt on this device:

    user-llm efficiency --config=efficiency [--output=efficiency.json]

Three ways of answering from 50, 100 and 200 events are built from the config's dimensions with random weights:
TextPrompt, which reads the events as text (as many tokens as in the paper), and User-LLM with and without a
Perceiver, which reads a query of `prompt.max_inputs` tokens and the user's embeddings. Programs are timed in turns:
on a machine that others use, ratios hold where seconds do not.
"""

import functools
import json
import sys

from absl import app, flags
from ml_collections import config_flags

from user_llm import command_line
from user_llm.efficiency.programs import TEXT_TOKENS, measure
from user_llm.efficiency.report import render
from user_llm.errors import show
from user_llm.evaluation.report import provenance
from user_llm.experiment.validation import validate
from user_llm.files import replacing
from user_llm.parallel.accelerators import unused
from user_llm.paths import local_path

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Dimensions of the models. Override a key with --config.<key>=<value>.", lock_config=True
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the numbers.")
_EVENTS = flags.DEFINE_multi_enum(
    "events", [str(events) for events in TEXT_TOKENS], [str(events) for events in TEXT_TOKENS], "Length of the history."
)
_USERS = flags.DEFINE_integer("users", 4, "Users at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each program; the tables show medians.", lower_bound=1)


def main(_) -> None:
    try:
        _measure()
    except Exception as error:
        sys.exit(show(error))


def _measure() -> None:
    output = local_path(_OUTPUT.value, "--output") if _OUTPUT.value else None
    if idle := unused():
        print(idle, file=sys.stderr)
    rows = []
    for events in map(int, _EVENTS.value):
        print(f"{events} events …", file=sys.stderr, flush=True)
        rows += measure(_CONFIG.value, events, users=_USERS.value, rounds=_ROUNDS.value)
    results = {**provenance("random users"), "config": _CONFIG.value.name, "users": _USERS.value, "rows": rows}
    print(render(results))
    if output:
        with replacing(output) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(command_line.flags_parser, validate=validate))
