# syntax=docker/dockerfile:1
# The device side. Build from the repository root:
#   docker build -f deploy/worker.Dockerfile -t twolane-worker .
# On Linux the usual index serves torch with CUDA. For a CPU-only image, far smaller, name an index that has CPU builds:
#   --build-arg TORCH_BUILD=+cpu --build-arg TORCH_INDEX_URL=...
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_BUILD=
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
# Some of FlagEmbedding's dependencies come as source only on some platforms.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/twolane
WORKDIR /src
COPY requirements.lock ./
# torch has a layer of its own: it is most of the image and changes least.
RUN --mount=type=cache,target=/root/.cache/pip \
    version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' requirements.lock) \
    && /opt/twolane/bin/pip install -c requirements.lock ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
        "torch==${version}${TORCH_BUILD}"
COPY pyproject.toml README.md LICENSE ./
# Empty packages stand in for the code, so that this layer stays cached until a dependency changes.
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir app workers tasks config stack && /opt/twolane/bin/pip install -c requirements.lock '.[worker,s3]'
COPY config config
COPY tasks tasks
COPY workers workers
RUN rm -rf build && /opt/twolane/bin/pip install --no-deps --force-reinstall .

FROM python:${PYTHON}-slim
# OpenMP's run time, which torch and OpenVINO load.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home twolane \
    && install -d -o twolane -g twolane /data
COPY --from=build /opt/twolane /opt/twolane
ENV PATH=/opt/twolane/bin:$PATH PYTHONUNBUFFERED=1 TWOLANE_DATA_DIR=/data HF_HUB_OFFLINE=1
USER 10001
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
# A large model may be downloaded first.
HEALTHCHECK --interval=15s --timeout=10s --start-period=15m \
    CMD ["python", "-m", "workers.health"]
CMD ["python", "-m", "workers.launch"]
