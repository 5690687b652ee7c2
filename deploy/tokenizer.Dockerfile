# The tokenizer service: the front door, text in and text out, no torch.
#
#   docker build -f deploy/tokenizer.Dockerfile -t quire-tokenizer .

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md constraints.txt ./
COPY quire quire
COPY services services
COPY kernels kernels
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/quire \
    && /opt/quire/bin/pip install --no-cache-dir --constraint constraints.txt "$(echo /wheels/quire-*.whl)[tokenizer]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home quire \
    && install -d -o 10001 /var/cache/quire
COPY --from=build /opt/quire /opt/quire
ENV PATH=/opt/quire/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/var/cache/quire/huggingface
USER 10001
VOLUME /var/cache/quire
EXPOSE 50051 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["quire", "health", "127.0.0.1:50051"]
ENTRYPOINT ["python", "-m", "quire_tokenizer", "--host", "0.0.0.0", "--grpc-port", "50051", "--port", "8000"]
