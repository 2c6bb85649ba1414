# The image of every node: Ray, puregrid at /opt/puregrid, nothing of yours. Data, weights and results are mounted or
# named by URI, credentials come from the machine's role or the environment; none of it is built in.
#
#   docker build -t puregrid:0.1.0 .                                    CPU
#   docker build -t puregrid:0.1.0-cuda --build-arg TORCH_INDEX= .      CUDA: PyPI's wheels bring the libraries along
FROM python:3.11.14-slim-bookworm

# Where torch comes from before PyPI; empty for PyPI alone.
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
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir -c constraints.txt torch torchvision \
    && pip install --no-cache-dir -c constraints.txt ".[cluster]" \
    && pip uninstall --yes puregrid && rm -rf build ./*.egg-info
COPY defense/ defense/
COPY puregrid/ puregrid/
COPY tasks/ tasks/
COPY workflows/ workflows/
COPY deploy/ deploy/
RUN pip install --no-cache-dir --no-deps -c constraints.txt -e .

# The NVIDIA container runtime hands over the GPUs that these name; without one they say nothing.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0

# By number, which Kubernetes can tell from root.
USER 1000
WORKDIR /home/ray
CMD ["puregrid", "--help"]
