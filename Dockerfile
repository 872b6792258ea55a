# Tollway as an image: gateway, control and the command line are one program. docs/deployment.md says how to run it.
#
#   podman build --tag tollway .          (or docker build)
#
# BASE: pin it by digest in your own pipeline, `--build-arg BASE=docker.io/library/debian@sha256:...`. It needs apt and Python 3.11 in apt.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
# Versions are those of the base's release: a pin would keep security updates out.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv
WORKDIR /source
COPY requirements/build.txt requirements/runtime.txt requirements/
# The compiler of the hot modules reads the types of the packages that they use, so the build has those as well.
RUN python3 -m venv /build \
    && /build/bin/python -m pip install --no-cache-dir --require-hashes --requirement requirements/build.txt --requirement requirements/runtime.txt \
    && python3 -m venv /opt/tollway \
    && /opt/tollway/bin/python -m pip install --no-cache-dir --require-hashes --requirement requirements/runtime.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY scripts/native.py scripts/
COPY src src
# 1: the hot modules compiled, about a third fewer instructions a request. 0: the same source as plain Python.
ARG NATIVE_CODE=1
RUN TOLLWAY_NATIVE=${NATIVE_CODE} /build/bin/python -m hatchling build -t wheel \
    && /opt/tollway/bin/python -m pip install --no-cache-dir --no-deps dist/*.whl \
    && /opt/tollway/bin/python -m pip uninstall --yes pip setuptools \
    && python3 -m compileall -q /opt/tollway/lib

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm --recursive --force /var/lib/apt/lists/* \
    && install --directory --mode 0700 --owner 65532 --group 65532 /data
COPY --from=build /opt/tollway /opt/tollway
# A number, so that an orchestrator can see that it is not root. Only /data is written: the root may be read-only.
USER 65532:65532
ENV PATH=/opt/tollway/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8080 8081 8082 9090
STOPSIGNAL SIGTERM
# Of a gateway and of `serve`. Other commands have no listener there: switch it off for them (compose.yaml, the chart).
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/opt/tollway/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/livez', timeout=2)"]
ENTRYPOINT ["/opt/tollway/bin/tollway"]
CMD ["serve", "--data-dir", "/data", "--listen", "0.0.0.0:8080", "--internal", "0.0.0.0:9090", "--control-listen", "0.0.0.0:8081"]
