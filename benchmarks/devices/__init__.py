"""One engine or device without a server around it."""
