# Two images, cpu and cuda. Both include the small embedded models, so neither needs a network to run.
#   docker build --target cpu  -t amortized3d:cpu .
#   docker build --target cuda -t amortized3d:cuda .
#   docker run --rm -v "$PWD/outputs:/app/outputs" amortized3d:cpu train configs/quickstart.yaml
#   docker run --rm -v "$PWD/outputs:/app/outputs" amortized3d:cpu evaluate outputs/quickstart
# The container's user has the id 1000: `outputs` must be writable for it, or add --user "$(id -u)".
ARG PYTHON_IMAGE=python:3.12-slim
# The torch wheel bundles the CUDA 13 libraries; the -devel image adds nvcc, for optional extensions.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn-devel-ubuntu24.04

# ---- source: the code and its requirements ----
FROM ${PYTHON_IMAGE} AS source
WORKDIR /app
COPY pyproject.toml requirements.lock ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = project['optional-dependencies']; \
        print(*project['dependencies'], *extras['assets'], *extras['serve'], *extras['usdz'], sep='\n')" > requirements.txt
COPY . .

# ---- cpu: torch without CUDA, from an index of CPU wheels ----
FROM ${PYTHON_IMAGE} AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 \
    PATH="/opt/venv/bin:${PATH}"
# pip may not replace packages of a distribution's own Python.
RUN python -m venv /opt/venv
WORKDIR /app
COPY --from=source /app/requirements.txt /app/requirements.lock ./
# Install torch and torchvision from the CPU index first; the next line keeps them and adds the rest from PyPI.
RUN pip install --no-deps --index-url "${TORCH_INDEX}" --constraint requirements.lock torch torchvision \
    && pip install --constraint requirements.lock --requirement requirements.txt setuptools
RUN useradd --create-home --uid 1000 amortized && install --directory --owner amortized outputs
COPY --from=source /app ./
RUN pip install --no-deps --no-build-isolation --editable .
USER 1000
ENTRYPOINT ["amortized"]
CMD ["--help"]

# ---- cuda: PyPI wheels on a CUDA image; run with --gpus all ----
FROM ${CUDA_IMAGE} AS cuda
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 \
    PATH="/opt/venv/bin:${PATH}"
# DeepSpeed and Triton compile at their first start; with a read-only root only /tmp is writable.
ENV TORCH_EXTENSIONS_DIR=/tmp/torch_extensions TRITON_CACHE_DIR=/tmp/triton
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
WORKDIR /app
COPY --from=source /app/requirements.txt /app/requirements.lock ./
RUN pip install --constraint requirements.lock --requirement requirements.txt setuptools deepspeed
# Ubuntu's image already has a user with id 1000.
RUN (userdel --remove ubuntu || true) \
    && useradd --create-home --uid 1000 amortized && install --directory --owner amortized outputs
COPY --from=source /app ./
RUN pip install --no-deps --no-build-isolation --editable .
USER 1000
ENTRYPOINT ["amortized"]
CMD ["--help"]
