# The worker's core for RunPod Serverless: small, and WITHOUT torch. It answers every request except
# those that train or draw: for them the engine needs the torch stack in the same Python. Two ways:
#
#   docker build -f Dockerfile.full .                the image to deploy: torch (CUDA) included
#   docker build --build-arg BASE=<image> .          on an image of yours that has Python >= 3.11 with
#                                                    the packages of loradash's extra `diffusers`
#
# A base image's Python must accept `pip install` (no PEP 668 marker) and be first in PATH.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# tini is PID 1: it hands SIGTERM to the worker, reaps engines that were left behind, and ends the
# container when the worker ends, so that no ping process of the SDK outlives it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# Never a folder of a network volume: the RunPod SDK keeps its list of jobs in the current folder,
# and workers that shared one would take each other's jobs.
WORKDIR /app

# Dependencies before the code: a change of the code doesn't install them again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['worker'], sep='\n')" \
        > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

COPY README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-deps . && rm -rf src
COPY handler.py ./

# On the container's own disk; a network volume is /runpod-volume there. Settings and credentials
# come from the endpoint's environment variables, never from the image.
ENV WORKSPACE_PATH=/workspace \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# It runs as root: network volumes are mounted owned by root, and another user couldn't write there.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["loradash", "worker"]
