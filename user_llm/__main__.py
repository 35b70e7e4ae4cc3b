"""The command `user-llm`, also `python -m user_llm`: the commands of the package under one name."""

import runpy
import sys

import user_llm

COMMANDS = {
    "train": ("user_llm.main", [], "train an experiment and evaluate it, or go on with it"),
    "audit": ("user_llm.main", ["--audit"], "look for leaks in an experiment's data and batches"),
    "diagnose": ("user_llm.inspect.diagnosis", [], "take apart where a run's LLM loses on the way to a title"),
    "recommend": ("user_llm.bulk.recommend", [], "recommend items to all users of some files of events"),
    "embed": ("user_llm.bulk.embed", [], "encode all users of some files, into a file or a store"),
    "serve": ("user_llm.serving.serve", [], "answer over HTTP, and show a page to try a run with"),
    "export": ("user_llm.exported.export", [], "write a run as a folder that answers without this package"),
    "build": ("user_llm.builders.build", [], "build a dataset: one timeline a user"),
    "sweep": ("user_llm.launch.local", [], "run tables of the paper on this machine"),
    "report": ("user_llm.launch.report", [], "write the report of a sweep"),
    "efficiency": ("user_llm.efficiency", [], "measure User-LLM against a text prompt on this device"),
}
"""Name → the module it runs, what stands before the arguments, what it does."""


def usage() -> str:
    """What `user-llm --help` prints."""
    lines = [f"  {name:10}  {does}" for name, (_, _, does) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: user-llm COMMAND [FLAGS]",
            "",
            *lines,
            "",
            "user-llm COMMAND --help lists the flags of one, user-llm --version says which this is.",
        ]
    )


def cli() -> None:
    """Runs the command that `sys.argv` names as `python -m` runs its module."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--version":
        print(f"user-llm {user_llm.__version__}")
    elif name in COMMANDS:
        module, before, _ = COMMANDS[name]
        sys.argv[1:] = [*before, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        print(f"error: {name!r} is no command of user-llm\n\n{usage()}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()
