"""What only reads starts without TensorFlow, TFDS and SeqIO, which take many seconds; a library prints nothing."""

import subprocess
import sys
from pathlib import Path

import user_llm.data

HEAVY = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "clu")
PROGRAM = """
import sys
{imports}
import user_llm
model = user_llm.load({run!r})
titles = [title for title in model.catalogue.titles if title]
model.recommend([{{"item": title, "rating": 4.0}} for title in titles[:3]], 2)
print("imported:", *sorted({heavy} & {{*sys.modules}}))
from user_llm.builders.simulated import SimulatedConfig
few = SimulatedConfig(num_users=9, num_items=60, mean_events=26)
user_llm.load_timelines("google_local/simulated", data_dir={data!r}, simulated=few)
print("built:", "tensorflow" in sys.modules)
"""


def test_neither_reading_nor_building_imports_tensorflow_or_prints(tiny_run, tmp_path):
    """In a process of its own, as other tests have imported it and have set up logging."""
    names = {path.stem for path in Path(user_llm.data.__file__).parent.glob("*.py")} - {"__init__"}
    assert {"vocabularies", "prompts", "timelines", "windows", "pipeline"} <= names
    modules = [f"user_llm.data.{name}" for name in sorted(names)] + ["user_llm.main", "user_llm.api"]
    imports = "\n".join(f"import {name}" for name in modules)
    program = PROGRAM.format(imports=imports, run=str(tiny_run[0]), heavy={*HEAVY}, data=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("imported:\nbuilt: False\n", "")
