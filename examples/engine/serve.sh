#!/bin/sh
# A vLLM server that follows a training run.   sh serve.sh MODEL [PORT [MORE OPTIONS OF VLLM]]
# In an environment of its own, with vLLM and trimtab: `make engine`, or set VLLM_PYTHON.
# The routes by which weights change have no password: keep the server to machines you trust.
set -e
model=$1
port=${2:-8000}
shift
[ $# -eq 0 ] || shift
export VLLM_SERVER_DEV_MODE=1 # the routes by which weights change
exec "${VLLM_PYTHON:-.engine-venv/bin/python}" -m vllm.entrypoints.openai.api_server \
    --model "$model" --host 127.0.0.1 --port "$port" --dtype bfloat16 \
    --weight-transfer-config '{"backend": "trimtab"}' "$@"
