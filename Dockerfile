# docker build -t gpt2core .
# docker run --rm gpt2core                      the pipeline from nothing, as `make repro`
# docker run --rm -it gpt2core bash             a shell with everything in it
# PyTorch comes from pip's index, on x86-64 with CUDA (then: docker run --gpus all). For a smaller image without CUDA:
# docker build --build-arg GPT2CORE_TORCH_INDEX=ADDRESS -t gpt2core .     with the address of PyTorch's CPU builds
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home gpt2core
USER gpt2core
WORKDIR /home/gpt2core/project

# The packages first: they are installed anew only when the lock changes.
ARG GPT2CORE_TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1
COPY --chown=gpt2core requirements.lock requirements-torch.txt ./
COPY --chown=gpt2core tools/install_torch.py tools/
RUN python -m venv .venv && .venv/bin/python tools/install_torch.py \
    && .venv/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
COPY --chown=gpt2core . .
# Without .git there would be no repository for DVC to stand in.
RUN .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat -e . \
    && touch .venv/ready \
    && (git rev-parse --quiet --verify HEAD || (git init --quiet && git add --all \
        && git -c user.name=gpt2core -c user.email=gpt2core@localhost commit --quiet --message "As built")) > /dev/null
ENV PATH=/home/gpt2core/project/.venv/bin:$PATH VIRTUAL_ENV=/home/gpt2core/project/.venv
CMD ["make", "repro"]
