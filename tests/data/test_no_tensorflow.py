"""The array road starts without TensorFlow and SeqIO, which take many seconds and hundreds of megabytes."""

import subprocess
import sys
from pathlib import Path

import user_llm.data


def test_the_array_road_imports_neither_tensorflow_nor_seqio():
    """In a process of its own, as other tests have imported both."""
    names = {path.stem for path in Path(user_llm.data.__file__).parent.glob("*.py")} - {"__init__"}
    assert {"vocabularies", "prompts", "timelines", "windows", "pipeline"} <= names
    imports = "".join(f"import user_llm.data.{name}\n" for name in sorted(names))
    told = "import sys\nprint(*sorted({'tensorflow', 'tensorflow_text', 'seqio'} & {*sys.modules}))"
    run = subprocess.run([sys.executable, "-c", imports + told], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
