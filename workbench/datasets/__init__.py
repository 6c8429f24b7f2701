"""Documents with their queries and gold evidence: bundled ones by name, yours from a folder."""

from workbench.datasets.catalog import Entry, catalogue, load
from workbench.datasets.checking import CheckReport, check
from workbench.datasets.dataset import Dataset, document_digest

__all__ = ["CheckReport", "Dataset", "Entry", "catalogue", "check", "document_digest", "load"]
