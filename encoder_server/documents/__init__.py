"""Reading the documents of a refresh: files, folders or standard input, as a stream in bounded memory.

bytes ─► lines, or batches of Parquet ─► rows ─► documents and rejections
source   lines, parquet                          document
"""

from encoder_server.documents.document import Deletion, Document, Rejection
from encoder_server.documents.source import DocumentSource

__all__ = ["Deletion", "Document", "DocumentSource", "Rejection"]
