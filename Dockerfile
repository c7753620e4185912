# CPython, the parts of its standard library that the fake uses, the fake; nothing else: no
# shell, no package manager. .ci/image builds it and checks all that is said here.

# Any Debian-based image with a Python 3.9 or later.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /build
COPY customerio_fake.py .ci/container/collect.py .ci/container/probe.py ./
RUN ["python3", "-B", "collect.py", "/rootfs"]

FROM scratch
LABEL org.opencontainers.image.title="customerio-fake" \
      org.opencontainers.image.description="A local Customer.io for tests: Track, App and Pipelines APIs on one port" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /rootfs /
COPY LICENSE /

# Numeric, so that Kubernetes can see it is not root. The fake writes no file: run it
# with a read-only root file system.
USER 65532:65532
ENV PATH=/usr/local/bin:/usr/bin HOST=0.0.0.0 PORT=4668
EXPOSE 4668

# Two seconds, because a builder of before 2024 does not know --start-interval.
HEALTHCHECK --interval=2s --timeout=2s --start-period=10s --retries=3 \
    CMD ["python3", "-B", "-I", "-m", "customerio_fake", "healthcheck"]

# Flags, because -I makes the interpreter blind to PYTHONUNBUFFERED and its like; and -m,
# because a script would be compiled at every start.
ENTRYPOINT ["python3", "-u", "-B", "-I", "-m", "customerio_fake"]
