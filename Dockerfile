# An image that serves the built-in model, or whatever is mounted at /models: a bundle, or a repository of models.
#   docker build -t flambeau .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:5000:5000 -e FLAMBEAU_INSECURE_NO_AUTH=1 \
#     -e FLAMBEAU_ALLOWED_HOSTS=localhost,127.0.0.1 flambeau
#   docker run ... -v ./models:/models:ro flambeau
# Written by scripts/make_dockerfile.py (make docs), from the template of flambeau package.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS package
WORKDIR /source
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
# PyTorch builds the model's bundle in this stage, and stays in it
RUN python3 -m venv --copies /venv \
 && /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[torch]'
RUN /venv/bin/flambeau package -o /package

FROM ${BASE} AS build
WORKDIR /build
# Another index or a proxy: --build-arg PIP_INDEX_URL=..., --build-arg HTTPS_PROXY=...
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
COPY --from=package /package/requirements.txt /package/flambeau-*.whl ./
RUN python3 -m venv --copies pip && python3 -m venv --without-pip /opt/flambeau
RUN pip/bin/python -m pip --python /opt/flambeau/bin/python install --no-cache-dir --no-compile --no-deps \
      --disable-pip-version-check --only-binary :all: --require-hashes -r requirements.txt \
 && pip/bin/python -m pip --python /opt/flambeau/bin/python install --no-cache-dir --no-compile --no-deps \
      --disable-pip-version-check --no-index flambeau-*.whl
# What serving never loads
WORKDIR /opt/flambeau/lib
RUN rm -rf \
      python3*/site-packages/numpy/*/tests \
      python3*/site-packages/numpy/_core/include \
      python3*/site-packages/numpy/_core/lib \
      python3*/site-packages/numpy/f2py \
      python3*/site-packages/numpy/tests \
      python3*/site-packages/onnxruntime/capi/libonnxruntime.so* \
      python3*/site-packages/onnxruntime/datasets \
      python3*/site-packages/onnxruntime/quantization \
      python3*/site-packages/onnxruntime/tools \
      python3*/site-packages/onnxruntime/transformers \
 && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' \) -delete
WORKDIR /opt/flambeau/bin
RUN find . -type f ! -name flambeau -delete \
 && ./python -m flambeau.deploy.precompile

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="flambeau" \
      org.opencontainers.image.description="Serves a mounted bundle or repository of models, or EfficientNet-Lite0 with ImageNet weights" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.base.name="${BASE}" \
      com.amazonaws.sagemaker.capabilities.multi-models="true" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port="true"
ENV PATH=/opt/flambeau/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    FLAMBEAU_CACHE=/tmp/flambeau \
    FLAMBEAU_SOURCE=/models \
    FLAMBEAU_HOST=0.0.0.0
COPY --from=build /opt/flambeau /opt/flambeau
# The base image's pip serves nobody here, and its standard library comes without compiled code
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip /usr/local/bin/pip* /root/.cache \
 && PYTHONHASHSEED=0 python -m flambeau.deploy.precompile
COPY --from=package /package/sbom.cdx.json /opt/flambeau/
COPY --from=package /package/bundle /models
USER 10001:10001
EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 CMD ["flambeau", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["flambeau"]
CMD ["serve"]
