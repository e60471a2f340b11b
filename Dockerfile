# GASNet in a container. For research use only; not a medical device.
#
# Written where no container engine was at hand: the steps are tested one by one (tests/test_project_files.py), the
# image as a whole has not been built there.
#
#     docker build -t gasnet .
#     docker run --rm gasnet train.py --help
#     docker run --rm --gpus all --shm-size 2g --user "$(id -u):$(id -g)" \
#         -v /data/covid:/data -v "$PWD/output:/output" \
#         gasnet train.py --config-path configs/Gan.yaml --is-validation DATASET.ROOT=/data EXP.OUTPUT_DIR=/output
#
# Without a GPU leave --gpus out; with one, the host needs the NVIDIA Container Toolkit and nothing else of CUDA, which
# comes with PyTorch. Mounted folders are written as the user that --user names. lungmask fetches its weights to
# /tmp/.cache/torch; mount a folder there (-v "$HOME/.cache/torch:/tmp/.cache/torch") to fetch them once.
FROM python:3.12-slim

# HOME may be written by whichever user --user names; USER, as some libraries ask for a name that it need not have.
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=gasnet
WORKDIR /gasnet

# The environment first: it is built again only when the requirements change. The script also sees to it that the
# OpenCV without windows wins, so no libGL is needed.
COPY requirements.txt ./
COPY scripts/environment.sh scripts/
RUN sh scripts/environment.sh

COPY . .
RUN useradd --uid 1000 --no-create-home gasnet
USER gasnet

ENTRYPOINT ["/gasnet/.venv/bin/python"]
CMD ["train.py", "--help"]
