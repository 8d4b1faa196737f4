# noisebook in a container, for CPUs and for NVIDIA GPUs: docs/docker.md.
#   docker build -t noisebook .
#   docker build -t noisebook:cuda --build-arg VARIANT=cuda .
# The CUDA variant needs no CUDA base: torch's wheel carries the libraries, the host brings the driver.
ARG VARIANT=cpu
ARG PYTHON=3.12.8-slim-bookworm

# ---- a wheel of the checkout; the compiler stays here ---------------------------------------------------------------------
FROM python:${PYTHON} AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY csrc csrc
COPY kernels kernels
COPY engine engine
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# ---- an environment with it ------------------------------------------------------------------------------------------------
FROM python:${PYTHON} AS environment
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

FROM environment AS torch-cpu
ARG TORCH=2.13.0
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}"

FROM environment AS torch-cuda
ARG TORCH=2.13.0
RUN pip install --no-cache-dir "torch==${TORCH}"

# hadolint ignore=DL3006
FROM torch-${VARIANT} AS installed
ARG VARIANT
# extras of pyproject.toml, with their brackets: [diffusers] for pipelines, [text] for prompts too, [ray]
ARG EXTRAS=
COPY --from=build /wheels /wheels
# The last line: without a compiler setup.py would leave out the extension, and all would be slow.
# Triton is for CUDA alone, and large.
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)${EXTRAS}" \
    && if [ "$VARIANT" = cpu ]; then pip uninstall --yes triton; fi \
    && python -c "import noisebook._C"

# ---- what runs -------------------------------------------------------------------------------------------------------------
FROM python:${PYTHON} AS runtime-cpu

FROM python:${PYTHON} AS runtime-cuda
# Triton compiles a small launcher in C for each kernel when it first runs
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM runtime-${VARIANT} AS runtime
RUN useradd --uid 1000 --no-create-home noisebook
COPY --from=installed /opt/venv /opt/venv
# Any user may be given with --user: caches go where every user can write, and a name is there for those not in passwd
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp USER=noisebook
USER 1000
WORKDIR /data
ENTRYPOINT ["noisebook"]
CMD ["--help"]
