# fastbatch with the real Caffe, ready to use: Debian 11's own Caffe, from the same list of packages as tools/caffe-env.
#
#   docker build -t fastbatch .
#   docker run --rm -it -v "$PWD:/data" fastbatch caffe train -solver /data/solver.prototxt
#
# When Debian has moved bullseye to its archive: docker build --build-arg FASTBATCH_DEBIAN_MIRROR=URL ...
FROM debian:bullseye
ARG FASTBATCH_DEBIAN_MIRROR=
COPY tools/caffe-packages.txt /tmp/
RUN if [ -n "$FASTBATCH_DEBIAN_MIRROR" ]; then \
        echo "deb $FASTBATCH_DEBIAN_MIRROR bullseye main" > /etc/apt/sources.list; \
    fi \
    && apt-get update \
    && grep -v '^#' /tmp/caffe-packages.txt | DEBIAN_FRONTEND=noninteractive xargs apt-get install --yes --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*

# Beside Caffe's own NumPy, which the environment must not replace: Caffe was compiled against it. And with a newer pip:
# Debian's builds with Debian's Cython, which is too old, where an environment sees the system's packages.
COPY . /src/fastbatch
RUN python3 -m venv --system-site-packages /opt/fastbatch \
    && python3 -c 'import numpy; print("numpy==" + numpy.__version__)' > /opt/fastbatch/held.txt \
    && /opt/fastbatch/bin/python -m pip install --no-cache-dir --upgrade pip \
    && /opt/fastbatch/bin/python -m pip install --no-cache-dir --constraint /opt/fastbatch/held.txt /src/fastbatch \
    && rm -rf /src/fastbatch

# The caffe tool embeds Debian's Python, not the environment's: PYTHONPATH shows it fastbatch.
ENV PATH=/opt/fastbatch/bin:$PATH PYTHONPATH=/opt/fastbatch/lib/python3.9/site-packages
WORKDIR /data
CMD ["python"]
