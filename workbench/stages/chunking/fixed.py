"""Windows of a fixed number of tokens."""

from __future__ import annotations

from workbench.models.protocols import Tokenizer
from workbench.records import Document
from workbench.specs import Fixed
from workbench.stages.chunking._spans import Packer, Ruler, Spans, not_blank


def windows(spec: Fixed, tokenizer: Tokenizer, document: Document) -> Spans:
    """Windows of `spec.tokens` tokens, each starting `spec.tokens - spec.overlap` tokens after the one before.

    A window runs from the start of its first token to the start of the token after its last, the first
    from 0 and the last to the end of the text. Nothing is trimmed, so without overlap the windows are a
    partition of the text: each ends where the next one starts (windows of blanks only are left out). The
    last window is the first that reaches the end. This is the fixed token chunker of Smith & Troynikov
    (2024), "Evaluating Chunking Strategies for Retrieval", said in offsets. Tokens that start at the same
    character stay together; there a window is shorter, or longer if one character alone is too much.
    """
    ruler = Ruler(document.text, tokenizer)
    return not_blank(document.text, Packer(ruler, (), spec.tokens, spec.overlap).pack())
