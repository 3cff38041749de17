"""What shows a model to others: a web page, a Space with it, a handler for Inference Endpoints."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no telemetry; gradio reads it when imported
