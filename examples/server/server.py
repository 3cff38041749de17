"""Serve an exported detector: the bytes of an image in, its detections as JSON out.

uvicorn server:app --port 8000                             # beside detect.py and model.onnx
curl --data-binary @image.jpg "http://127.0.0.1:8000/detect?score_threshold=0.5"
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Annotated, Any

from detect import READ_ERRORS, FileError, load
from fastapi import FastAPI, HTTPException, Query, Request
from PIL import Image
from starlette.requests import ClientDisconnect

MODEL = os.environ.get("MODEL", "model.onnx")
WORKERS = int(os.environ.get("WORKERS", "2"))  # images at once; WORKERS x THREADS is the cores
THREADS = int(os.environ.get("THREADS", "1"))  # number of threads for one image
MAX_REQUESTS = int(os.environ.get("MAX_REQUESTS", "16"))  # at once, with those that wait
MAX_BYTES = int(os.environ.get("MAX_BYTES", "20_000_000"))  # a larger file is refused
MAX_PIXELS = int(os.environ.get("MAX_PIXELS", "50_000_000"))  # a larger image is refused
UPLOAD_SECONDS = float(os.environ.get("UPLOAD_SECONDS", "30"))  # a slower upload is ended
FORMATS = ("JPEG", "PNG", "WEBP")

model = load(MODEL, THREADS)
pool = ThreadPoolExecutor(WORKERS)
slots = asyncio.Semaphore(MAX_REQUESTS)
# FastAPI's pages of documentation load scripts from another server.
app = FastAPI(title=model.metadata["architecture"], docs_url=None, redoc_url=None)


@app.get("/health")
async def health() -> dict[str, Any]:
    """Report which model is served."""
    names = ("architecture", "label_names", "precision", "weights_sha256", "versions")
    return {"status": "ok"} | {name: model.metadata[name] for name in names}


@app.post("/detect")
async def detect(
    request: Request, score_threshold: Annotated[float, Query(ge=0, le=1)] = 0.3
) -> dict[str, Any]:
    """Find the objects in the image that is the body of the request."""
    if slots.locked():
        reason = f"busy with {MAX_REQUESTS} requests; try again"
        raise HTTPException(503, reason, headers={"Retry-After": "1"})
    async with slots:
        try:
            data = await asyncio.wait_for(read_body(request), UPLOAD_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"no whole image within {UPLOAD_SECONDS} seconds") from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection ended before the image") from None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, detections_of, data, score_threshold)


async def read_body(request: Request) -> bytes:
    """Read the body of a request, unless it is too large."""
    data, declared = bytearray(), request.headers.get("content-length", "0")
    too_large = HTTPException(413, f"an image of more than {MAX_BYTES} bytes")
    if int(declared) > MAX_BYTES:
        raise too_large
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise too_large
    return bytes(data)


def detections_of(data: bytes, score_threshold: float) -> dict[str, Any]:
    """Detect the objects in an image file, after a check of its header."""
    too_large = HTTPException(413, f"an image of more than {MAX_PIXELS} pixels")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
    except Image.DecompressionBombError:
        raise too_large from None
    except READ_ERRORS:
        formats = ", ".join(FORMATS)
        raise HTTPException(415, f"the body is no image file; expected {formats}") from None
    if pixels > MAX_PIXELS:
        raise too_large
    try:
        found = model.predict(data, score_threshold)
    except FileError as error:
        raise HTTPException(422, str(error)) from None
    height, width = found.image.shape[:2]  # upright, as the boxes are
    return {
        "width": width,
        "height": height,
        "detections": [
            {"name": one.name, "label": one.label, "score": one.score, "box": one.box}
            for one in found
        ],
    }
