# bitrank on NVIDIA GPUs: this checkout with its pinned libraries and PyPI's build of torch, which brings CUDA with it. The driver comes
# from the host through the NVIDIA container toolkit, so the base stays a plain Python. See docs/guides/docker.md.
# Any base with Python 3.11 or newer as `python3`, its venv, and apt-get will do.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# torch first: sources change daily, torch does not. PyPI's wheel is built for CUDA 13; for an older driver give TORCH_BACKEND=cu126 or
# the like, which uv resolves. TORCH_INDEX_ARGS is for pip, such as --find-links=/wheels.
COPY constraints.txt ./
COPY constraints constraints
COPY tools/install-torch.sh tools/no-network.sh tools/
ARG TORCH_INDEX_ARGS=""
ARG TORCH_BACKEND=""
ARG PIP_INDEX_URL
RUN python3 -m venv /opt/bitrank \
    && PIP="/opt/bitrank/bin/pip -q" PY=/opt/bitrank/bin/python TORCH=cuda bash tools/install-torch.sh \
    && /opt/bitrank/bin/python -c "from torch import version as v; assert v.cuda is not None, v.__version__"
# Wheels are built with tools that stay behind in this stage.
RUN python3 -m venv /tools && /tools/bin/pip install -q -c constraints.txt hatchling
COPY packages packages
COPY orchestrator orchestrator
ARG EXTRAS=postgres
RUN /tools/bin/pip wheel -q --no-deps --no-build-isolation --wheel-dir wheels ./packages/*/ ./orchestrator \
    && /opt/bitrank/bin/pip install -q -c constraints.txt -c constraints/torch-cuda.txt wheels/bitrank_*.whl \
       "$(echo wheels/bitrank-*.whl)[${EXTRAS}]"
COPY docker/strip.sh docker/
RUN bash docker/strip.sh /opt/bitrank cuda

FROM ${BASE}
# libgomp1 serves bitsandbytes; runs take their memory from tcmalloc.
# EXTRA_PACKAGES="gcc libc6-dev" adds a compiler: low-bit weights are then decoded by compiled code.
ARG EXTRA_PACKAGES=""
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libtcmalloc-minimal4 ${EXTRA_PACKAGES} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /bin/bash bitrank \
    && install -d -m 1777 /cache /study
COPY --from=build /opt/bitrank /opt/bitrank
COPY docker/healthy.py /opt/bitrank/healthy.py
# All that is written goes to the two volumes and /tmp; any user id may write there, so that folders of the host can be mounted.
# Python modules in the folder that is mounted at /study do not come before the installed ones (PYTHONSAFEPATH).
ENV PATH=/opt/bitrank/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 \
    HOME=/cache USER=bitrank XDG_CACHE_HOME=/cache BITRANK_CACHE=/cache/bitrank HF_HOME=/cache/huggingface \
    MLFLOW_DISABLE_TELEMETRY=true NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The commit this image was made from; runs carry it as a tag.
ARG COMMIT=""
ENV BITRANK_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="bitrank" org.opencontainers.image.licenses="MIT" org.opencontainers.image.revision="${COMMIT}"
WORKDIR /study
VOLUME ["/cache", "/study"]
USER 10001:10001
EXPOSE 5000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "/opt/bitrank/healthy.py"]
ENTRYPOINT ["bitrank"]
CMD ["--help"]
