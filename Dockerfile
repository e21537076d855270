# docker build -t demport .
# docker run --rm -v "$PWD/runs:/workspace/runs" demport run configs/quickstart.yaml      (add --gpus all where there is one)
# docker build --target ci -t demport-ci . && docker run --rm demport-ci
#
# The base of `runtime` brings tensorrt and its libraries; any Debian or Ubuntu with Python 3.11 or later works too, and then
# engines are built ahead of time by tensorrt-rtx: --build-arg BASE_IMAGE=debian:bookworm. The base of `ci` needs no GPU library.
ARG BASE_IMAGE=nvcr.io/nvidia/tensorrt:26.08-py3
ARG CI_BASE_IMAGE=debian:bookworm-20250929-slim

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS runtime

# Comma-separated extras of pyproject.toml. `gpu` adds pycuda, which is compiled with the base's nvcc; auto adds it where there is one.
ARG EXTRAS=auto

# The base decides the version (DL3008).
# hadolint ignore=DL3008
RUN python3 -c 'import ensurepip' 2>/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3-venv ca-certificates && rm -rf /var/lib/apt/lists/*)

ENV PATH=/opt/demport/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib

# The libraries are a layer of their own, so that a change of the code does not install them again. The base's Python packages
# stay visible, because its tensorrt is one of them. pyproject.toml gives the ranges (DL3013).
WORKDIR /src
COPY pyproject.toml LICENSE ./
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md \
    && if [ "$EXTRAS" = auto ]; then EXTRAS=timm$(command -v nvcc >/dev/null && echo ,gpu || true); fi \
    && python3 -m venv --system-site-packages /opt/demport \
    && python3 -m pip install --disable-pip-version-check ".[$EXTRAS]"

COPY README.md ./
COPY demport demport
COPY pipeline pipeline
COPY export export
COPY runtime runtime
RUN python3 -m pip install --disable-pip-version-check --no-cache-dir --no-deps --force-reinstall .

# Anybody may write to the workspace, so that `docker run --user "$(id -u)"` leaves files of that user; a volume that is new
# gets the rights of the folder it is mounted on.
RUN useradd --create-home --uid 10001 demport \
    && install -d -m 1777 /workspace /workspace/runs /workspace/serving
WORKDIR /workspace
COPY configs configs
USER 10001

# Declared here, because every RUN after an ARG is done again when its value changes, and a revision always does.
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="demport" \
      org.opencontainers.image.description="Train a CNN with DemP, cut the dead channels out, export to ONNX and TensorRT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"

# A command that ends has no service to ask. What can go bad under one that runs for hours is its installation, e.g. by a
# volume mounted over it: the command line still starts from it.
HEALTHCHECK --interval=60s --timeout=30s CMD ["demport", "--version"]
ENTRYPOINT ["demport"]
CMD ["--help"]

# The tests, on a CPU: lint, types and the default tier.
# hadolint ignore=DL3006
FROM ${CI_BASE_IMAGE} AS ci
# The base decides the versions (DL3008).
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 demport \
    && install -d -o demport /src
USER 10001
WORKDIR /src
COPY --chown=10001 pyproject.toml LICENSE README.md Makefile ./
# The libraries are a layer of their own here too: the packages are installed in place, and filled below.
RUN --mount=type=cache,target=/home/demport/.cache/pip,uid=10001 \
    mkdir demport pipeline export runtime && touch demport/__init__.py pipeline/__init__.py export/__init__.py runtime/__init__.py && make env
COPY --chown=10001 . .
LABEL org.opencontainers.image.title="demport-ci" \
      org.opencontainers.image.description="demport with its tests, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0"
HEALTHCHECK --interval=60s --timeout=30s CMD [".venv/bin/demport", "--version"]
CMD ["make", "test"]

# What a build without --target gives.
FROM runtime
