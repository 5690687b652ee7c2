# The scheduler service: batching and KV blocks, no torch.
#
#   docker build -f deploy/scheduler.Dockerfile -t quire-scheduler .

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md constraints.txt ./
COPY quire quire
COPY services services
COPY kernels kernels
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/quire \
    && /opt/quire/bin/pip install --no-cache-dir --constraint constraints.txt "$(echo /wheels/quire-*.whl)[scheduler]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home quire
COPY --from=build /opt/quire /opt/quire
ENV PATH=/opt/quire/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
# gRPC, and the ZeroMQ data plane that workers connect to.
EXPOSE 50052 50053
# Serving means that steps make progress, so that a scheduler without a worker is not healthy yet.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["quire", "health", "127.0.0.1:50052"]
ENTRYPOINT ["python", "-m", "quire_scheduler", "--host", "0.0.0.0", "--grpc-port", "50052", "--data-port", "50053"]
