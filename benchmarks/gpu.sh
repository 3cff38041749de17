#!/usr/bin/env bash
# Test and measure everything that needs a GPU, in one call.
#
#     bash benchmarks/gpu.sh [FOLDER]  # where the CSV files go (default: benchmarks)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks}

python -m pytest -m gpu tests

ours=(retinanet_r50_fpn retinanet_r50_sepc_lite retinanet_r50_sepc)
fused=(fused:retinanet_r50_sepc_lite fused:retinanet_r50_sepc)
others=(plain:retinanet_r50_sepc torchvision:retinanet_resnet50_fpn)
measure() {
    local file=$1
    shift
    python -m benchmarks.speed --device cuda --image-size 800x1344 --memory --output "$out/$file.csv" "$@"
}
measure gpu_eager --model "${ours[@]}" "${fused[@]}" --precision bf16 --channels-last --parts --batch-size 1 16
measure gpu_compiled --model "${ours[@]}" "${fused[@]}" --precision bf16 --channels-last --compile --batch-size 1 16
measure gpu_training --model "${ours[@]}" "${fused[@]}" --precision bf16 --channels-last --train --batch-size 16
measure gpu_float32 --model "${ours[@]}" "${fused[@]}" "${others[@]}" --train --batch-size 1 8
