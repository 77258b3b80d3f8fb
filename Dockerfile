# The explorer on the shipped models, for hosting:
#
#     docker build -t gear-studio .
#     docker run -p 7860:7860 gear-studio                      add --gpus all where there is a GPU
#     docker run -p 7860:7860 -v $PWD/runs:/runs gear-studio gear-studio explorer --host 0.0.0.0 --runs /runs
#
# PyPI's torch brings CUDA along. An image without it is some gigabytes smaller: give pip the index of torch's CPU
# wheels with --build-arg PIP_INDEX_URL=... or PIP_EXTRA_INDEX_URL=...
FROM python:3.12-slim

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

WORKDIR /studio
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md LICENSE ./
COPY gear_studio gear_studio
COPY apps apps
RUN pip install --no-cache-dir -c constraints.txt . && rm -rf /studio/*

RUN useradd --create-home --uid 1000 visitor
USER visitor
WORKDIR /home/visitor

EXPOSE 7860
CMD ["gear-studio", "explorer", "--host", "0.0.0.0", "--port", "7860", "--read-only"]
