"""Records of uploaded files and of batches; the bytes are in tasks.storage."""
