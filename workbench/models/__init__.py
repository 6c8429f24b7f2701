"""Models behind small protocols: batch in, batch out. One file a family; fakes at the same seam."""

import os

# Set before any of the Hugging Face packages is imported: nothing here reports to anyone.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
