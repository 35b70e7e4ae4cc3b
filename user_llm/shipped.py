"""The configs that come with the package: beside it in a clone, where you edit them, and inside it once installed."""

import re
from pathlib import Path

_INSIDE = Path(__file__).parent / "configs"
CONFIGS = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[1] / "configs"
"""Their folder."""

_NAME = re.compile(r"(\w+)(:.*)?", re.DOTALL)


def config_file(path: str) -> str:
    """`path` of a config, with what follows its colon; a bare name, as "simulated:review_generation", is ours."""
    named = _NAME.fullmatch(path)
    return f"{CONFIGS / named[1]}.py{named[2] or ''}" if named else path


def config_names() -> list[str]:
    """What a bare name may be."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))
