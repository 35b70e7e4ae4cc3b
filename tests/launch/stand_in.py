"""Stands in for `python` in a sweep: leaves what a run of `user_llm.main` leaves, and trains nothing.

A folder `<out>/does` says what goes wrong: `fail`, `linger` or `wait` hold words; a run whose name has one of them
ends with an error, takes a second, or waits for SIGTERM (once) or for the file `leave`.
"""

import json
import pathlib
import signal
import sys
import time
import zlib

from user_llm.locks import Busy, owned

USERS = 40
SOURCES = {
    "next_item": ("Popularity", "Popularity in the latest category", "Encoder alone"),
    "favorite_category": ("Majority category", "Category of the latest event", "Dual encoder"),
    "review_generation": ("Most frequent review of the rating", "User's latest review"),
}
CONTEXTUALISED = ("LLM without context", "User-LLM", "User-LLM, shuffled contexts", "TextPrompt")


def rank(name: str, source: str, user: int) -> int:
    """What a run answers a user with, from 1 to 20; User-LLM is best."""
    value = zlib.crc32(f"{name}{source}{user}".encode()) % 20
    return 1 + value // (4 if source == "User-LLM" else 1)


def main() -> None:
    workdir = pathlib.Path(sys.argv[-1].partition("=")[2].removesuffix("/results.json"))
    try:
        with owned(workdir):
            run(workdir)
    except Busy as error:
        print(f"error: {error}")
        sys.exit(error.status)


def run(workdir: pathlib.Path) -> None:
    out, name = workdir.parent, workdir.name
    with (out / "starts.txt").open("a") as file:
        print(name, file=file)

    def told(to: str) -> bool:
        words = out / "does" / to
        return words.is_file() and any(word in name for word in words.read_text().split())

    if told("linger"):
        time.sleep(1)
    if told("fail"):
        print("error: the config is wrong")
        sys.exit(1)
    if told("wait") and not (workdir / "saved").exists():

        def stop(*_):
            (workdir / "saved").touch()
            sys.exit(143)

        signal.signal(signal.SIGTERM, stop)
        (out / "waiting").touch()
        end = time.monotonic() + 60
        while not (out / "does" / "leave").exists() and time.monotonic() < end:
            time.sleep(0.05)
    if "efficiency" in name:
        return write(workdir / "results.json", {**efficiency(), **provenance("random users")})
    for flag in sys.argv:
        key, _, value = flag.partition("=")
        if key.endswith("checkpoint") and not (out / pathlib.Path(value).relative_to(out).parts[0]).is_dir():
            sys.exit(f"error: too early for {value}")
    task = name.split(".")[1]
    rows = (*SOURCES[task], *CONTEXTUALISED)
    users = [str(user) for user in range(USERS)]
    if task == "review_generation":
        lines = [
            {"user_id": u, "written": {row: {"text": "", "rougeLsum": 1 / rank(name, row, int(u))} for row in rows}}
            for u in users
        ]
    else:
        lines = [{"user_id": u, "ranks": {row: rank(name, row, int(u)) for row in rows}} for u in users]
    (workdir / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(workdir / "config.json", {"data": {"history_length": 50}})
    write(workdir / "environment.json", {"summary": {"windows": {"50": {"train": 1234, "test": 56}}}})
    audit = {"verdict": "exceptions", "checks": {"ties": {"verdict": "exception", "count": 3, "of": USERS}}}
    samples = [{"prompt": "Write | a review", "truth": "Good <b>", "personalised": "Fine", "unpersonalised": ""}]
    results = {
        "training": {"user_llm": {"flops_6nd": 10**12}},
        "audit": audit,
        "provenance": provenance("abc"),
        **({"samples": samples} if task == "review_generation" else {}),
    }
    (workdir / "user_llm").mkdir(exist_ok=True)
    curve = [{"step": step, "kind": "train", "loss": 1 / step, "seconds": step} for step in (10, 20)]
    (workdir / "user_llm" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    return write(workdir / "results.json", results)


def efficiency() -> dict:
    rows = [
        {
            "events": events,
            "approach": approach,
            "llm_tokens": tokens,
            "context_vectors": vectors,
            "flops_6nd": 6 * tokens,
            "prefill": {"flops": 1e9 * tokens, "seconds": 1e-3 * tokens},
        }
        for events in (50, 100, 200)
        for approach, tokens, vectors in (
            ("TextPrompt", 13 * events, 0),
            ("User-LLM", 32, events),
            ("User-LLM + Perceiver", 32, 16),
        )
    ]
    return {"rows": rows, "users": 4, "config": "efficiency"}


def provenance(dataset: str) -> dict:
    device = {"count": 1, "kind": "cpu", "platform": "cpu"}
    return {"commit": "c0ffee", "dataset": dataset, "device": device, "python": "3", "versions": {"jax": "1"}}


def write(path: pathlib.Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
