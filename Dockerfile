# The image of every node: Ray, puregrid at /opt/puregrid, nothing of yours. Data, weights and results are mounted or
# named by URI, credentials come from the machine's role or the environment; none of it is built in.
#
#   docker build -t puregrid:0.1.0 --build-arg COMMIT="$(git rev-parse HEAD)" .
#   docker build -t puregrid:0.1.0-cuda --build-arg COMMIT="$(git rev-parse HEAD)" --build-arg TORCH=cuda .
#
# deploy/try_image.sh builds the first and tries it.

# Any image of Debian or Ubuntu whose `python` is one of 3.11 to 3.13 with pip.
ARG BASE=python:3.11.14-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE}

# cpu or cuda: requirements/cpu.txt or cuda.txt.
ARG TORCH=cpu
# Which index besides pip's own has the CPU build; none if this is empty.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# openssh-client and rsync are what `ray up` reaches nodes with, wget is what older KubeRay probes them with.
# Debian keeps one version of each, so that pinning them would break the build with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash ray

WORKDIR /opt/puregrid

# Packages before code: a change of code does not download torch again.
COPY requirements/ requirements/
RUN TORCH="${TORCH}" PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" requirements/install.sh python cluster --no-cache-dir
COPY pyproject.toml README.md LICENSE ./
COPY defense/ defense/
COPY puregrid/ puregrid/
COPY tasks/ tasks/
COPY workflows/ workflows/
COPY deploy/ deploy/
# Compiled here, once: the user of the image may not write beside the code.
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && python -m compileall -q defense puregrid tasks workflows

# The image has no repository that says which commit it holds; rows, reports and MLflow record this one. Not an
# environment variable: a job that brings its own code must not take it along.
ARG COMMIT
RUN test -z "${COMMIT}" || { echo "${COMMIT}" > COMMIT && grep -qEx '[0-9a-f]{40}( modified)?' COMMIT; }

# The NVIDIA container runtime hands over the GPUs that these name; without one they say nothing.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0

# By number, which Kubernetes can tell from root.
USER 1000
WORKDIR /home/ray
CMD ["puregrid", "--help"]
