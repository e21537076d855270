# docker build -t demport .
# docker run --rm -v "$PWD/runs:/workspace/runs" demport run configs/quickstart.yaml      (add --gpus all where there is one)
#
# The base brings tensorrt and its libraries; any Debian or Ubuntu with Python 3.11 or later works too, and then engines are
# built ahead of time by tensorrt-rtx: --build-arg BASE_IMAGE=debian:bookworm
ARG BASE_IMAGE=nvcr.io/nvidia/tensorrt:25.09-py3
FROM ${BASE_IMAGE}

# Comma-separated extras of pyproject.toml. `gpu` adds pycuda, which is compiled with the base's nvcc; auto adds it where there is one.
ARG EXTRAS=auto

# The base decides the version (DL3008), pyproject.toml the ranges (DL3013).
# hadolint ignore=DL3008
RUN python3 -c 'import ensurepip' 2>/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*)

ENV PATH=/opt/demport/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib

# The libraries are a layer of their own, so that a change of the code does not install them again. The base's Python packages stay
# visible, because its tensorrt is one of them.
WORKDIR /src
COPY pyproject.toml LICENSE ./
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md \
    && if [ "$EXTRAS" = auto ]; then EXTRAS=timm$(command -v nvcc >/dev/null && echo ,gpu || true); fi \
    && python3 -m venv --system-site-packages /opt/demport \
    && python3 -m pip install --disable-pip-version-check ".[$EXTRAS]"

COPY README.md ./
COPY pipeline pipeline
COPY export export
COPY runtime runtime
RUN python3 -m pip install --disable-pip-version-check --no-cache-dir --no-deps --force-reinstall .

# Anybody may write to the workspace, so that `docker run --user "$(id -u)"` leaves files of that user.
RUN useradd --create-home --uid 10001 demport && mkdir -m 1777 /workspace
WORKDIR /workspace
COPY configs configs
USER 10001

LABEL org.opencontainers.image.title="demport" \
      org.opencontainers.image.description="Train a CNN with DemP, cut the dead channels out, export to ONNX and TensorRT" \
      org.opencontainers.image.licenses="Apache-2.0"

HEALTHCHECK --interval=60s --timeout=30s CMD ["demport", "--version"]
ENTRYPOINT ["demport"]
CMD ["--help"]
