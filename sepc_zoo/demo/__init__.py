"""Ways to show a model: a web page, a Space with this page, a handler for Inference Endpoints."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no telemetry; gradio reads it when imported
