"""What only reads starts without TensorFlow, TFDS and SeqIO, which take many seconds and hundreds of megabytes."""

import subprocess
import sys
from pathlib import Path

import user_llm.data


def test_the_command_the_api_and_the_array_road_import_neither_tensorflow_nor_seqio():
    """In a process of its own, as other tests have imported both."""
    names = {path.stem for path in Path(user_llm.data.__file__).parent.glob("*.py")} - {"__init__"}
    assert {"vocabularies", "prompts", "timelines", "windows", "pipeline"} <= names
    modules = [f"user_llm.data.{name}" for name in sorted(names)] + ["user_llm.main", "user_llm.api"]
    imports = "".join(f"import {name}\n" for name in modules)
    heavy = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "clu")
    told = f"import sys\nprint(*sorted({{*{heavy}}} & {{*sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", imports + told], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
