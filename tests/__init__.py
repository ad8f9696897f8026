"""Tests need no network; huggingface_hub reads this once, when it is first imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
