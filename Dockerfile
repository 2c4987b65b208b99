# The serving image: cascade, server and bench, no torch.
#   docker build -t rescade .                            GPU; CUDA and cuDNN come as wheels, the host brings the driver
#   docker build -t rescade:cpu --build-arg DEVICE=cpu .
#   docker run --rm -p 8000:8000 --read-only -v ./bundles/digits:/bundle:ro rescade:cpu /bundle
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG DEVICE=gpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/rescade
WORKDIR /source
COPY pyproject.toml README.md LICENSE rescade.py ./
COPY cascade cascade
COPY server server
COPY training training
COPY export export
COPY bench bench
# The plain package asks for onnxruntime-gpu, which runs on a CPU too; the CPU build leaves the CUDA code out.
RUN case "$DEVICE" in \
      gpu) /opt/rescade/bin/pip install '.[gpu,grpc,otel,sign]' ;; \
      cpu) /opt/rescade/bin/pip install '.[grpc,otel,sign]' \
           && /opt/rescade/bin/pip uninstall --yes onnxruntime-gpu \
           && /opt/rescade/bin/pip install --force-reinstall --no-deps onnxruntime ;; \
      *) echo "DEVICE is gpu or cpu, not $DEVICE" >&2; exit 2 ;; \
    esac

FROM ${BASE_IMAGE}
ARG DEVICE=gpu
COPY --from=build /opt/rescade /opt/rescade
COPY bundles /bundles
# /dev/shm is writable even where the root is not; workers share their metrics there.
ENV PATH=/opt/rescade/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TMPDIR=/dev/shm \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RESCADE_HOST=0.0.0.0 \
    RESCADE_PORT=8000
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["rescade", "health"]
ENTRYPOINT ["rescade", "serve"]
CMD ["/bundles/digits"]
