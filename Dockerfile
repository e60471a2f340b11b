# GASNet in a container. For research use only; not a medical device.
#
# The steps are tested one by one (tests/test_project_files.py); the image as a whole has never been built, for want of
# a container engine.
#
#     docker build -t gasnet .
#     docker run --rm gasnet train.py --help
#     docker run --rm --gpus all --user "$(id -u):$(id -g)" \
#         -v /data/covid:/data -v "$PWD/output:/output" \
#         gasnet train.py --config-path configs/Gan.yaml --is-validation DATASET.ROOT=/data EXP.OUTPUT_DIR=/output
#
# Omit --gpus to run on the CPU. A GPU needs the NVIDIA Container Toolkit on the host; CUDA itself comes with PyTorch.
# Mounted folders are written as the user given by --user. lungmask downloads its weights to /tmp/.cache/torch; mount a
# folder there (-v "$HOME/.cache/torch:/tmp/.cache/torch") to keep them.
FROM python:3.12-slim

# Any user given by --user can write to HOME. Some libraries need USER, since that user may have no name.
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=gasnet
WORKDIR /gasnet

# The environment first, so that it is rebuilt only when the requirements change. The script installs the headless
# OpenCV, which needs no libGL.
COPY requirements.txt ./
COPY scripts/environment.sh scripts/
RUN sh scripts/environment.sh

COPY . .
RUN useradd --uid 1000 --no-create-home gasnet
USER gasnet

ENTRYPOINT ["/gasnet/.venv/bin/python"]
CMD ["train.py", "--help"]
