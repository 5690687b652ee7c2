# A worker: one model on one device.
#
#   docker build -f deploy/worker.Dockerfile -t quire-worker .
#
# The default index holds CUDA builds of torch. For a machine without a GPU, TORCH_INDEX_URL can name an index of CPU
# builds, which keeps gigabytes out of the image.

FROM python:3.12-slim AS build
ARG TORCH_INDEX_URL=https://pypi.org/simple
WORKDIR /src
COPY pyproject.toml README.md constraints.txt ./
COPY quire quire
COPY services services
COPY kernels kernels
# torch goes first and alone: what is installed later then finds the build that was chosen here.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/quire \
    && /opt/quire/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX_URL" --constraint constraints.txt \
       "$(grep '^torch==' constraints.txt)" \
    && /opt/quire/bin/pip install --no-cache-dir --constraint constraints.txt "$(echo /wheels/quire-*.whl)[worker]"

FROM python:3.12-slim
# Triton compiles a launcher for each kernel where a GPU is. The compiler is Debian's of the base image, whose tag moves:
# a pinned version would stop existing with the next point release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home quire \
    && install -d -o 10001 /var/cache/quire
COPY --from=build /opt/quire /opt/quire
ENV PATH=/opt/quire/bin:$PATH PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/quire/huggingface TRITON_CACHE_DIR=/var/cache/quire/triton
USER 10001
VOLUME /var/cache/quire
EXPOSE 50061
# The gRPC server answers only after the model is loaded, which may take minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s CMD ["quire", "health", "127.0.0.1:50061"]
ENTRYPOINT ["python", "-m", "quire_worker", "--host", "0.0.0.0", "--grpc-port", "50061"]
