# syntax=docker/dockerfile:1
# The web tier and Flower: no torch, a small image. Build from the repository root:
#   docker build -f deploy/web.Dockerfile -t twolane-web .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
RUN python -m venv /opt/twolane
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
# Empty packages stand in for the code, so that this layer stays cached until a dependency changes.
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir app workers tasks config stack \
    && /opt/twolane/bin/pip install -c requirements.lock '.[web,s3,tracing]' flower
COPY config config
COPY tasks tasks
COPY app app
RUN rm -rf build && /opt/twolane/bin/pip install --no-deps --force-reinstall .

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --create-home twolane && install -d -o twolane -g twolane /data
COPY --from=build /opt/twolane /opt/twolane
# An address inside the container; who may reach it is decided where the port is published, and by the API keys.
ENV PATH=/opt/twolane/bin:$PATH PYTHONUNBUFFERED=1 TWOLANE_HOST=0.0.0.0 TWOLANE_PORT=8000 TWOLANE_DATA_DIR=/data
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["python", "-m", "app"]
