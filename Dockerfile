# A server of a finished run, as compose.yaml starts it. On NVIDIA GPUs: .[serve,redis,cuda], and a device for it.
FROM python:3.12-slim

RUN useradd --create-home user-llm && install --directory --owner=user-llm /cache

WORKDIR /source
COPY setup.py pyproject.toml README.md LICENSE ./
COPY user_llm user_llm
COPY configs configs
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[serve,redis]'

WORKDIR /home/user-llm
USER user-llm
ENTRYPOINT ["user-llm"]
